"""The engine and the nodes in a real ComfyUI: `COMFYUI_PATH=folder make comfyui-test`.

The folder is a ComfyUI of yours; its requirements have to be importable (COMFYUI_SITE adds a folder to look in). The
demo model's weights run in ComfyUI's Flux class; other classes are tiny and random.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfy_stand_in import NO_COMFY, boot, comfyui_path, load_pack, walk_through
from torch import Tensor

import adaptcache
from adaptcache.engines.comfyui.apply import Applied
from adaptcache.engines.comfyui.engine import ComfyEngine, Sampling
from adaptcache.engines.comfyui.identity import fingerprint
from adaptcache.errors import ScheduleError
from adaptcache.evaluation.metrics import psnr
from adaptcache.forecasts.extrapolate import Extrapolate
from adaptcache.presets import read_prompts, resolve
from adaptcache.schedule.schedule import Schedule

pytestmark = pytest.mark.skipif(comfyui_path() is None, reason=NO_COMFY)
ROOT = Path(__file__).parents[1]
STEPS = 28
TWICE = {  # what ComfyUI 0.10.0 has; a new sampler shows itself in the table of docs/comfyui.md
    "heun", "heunpp2", "exp_heun_2_x0", "exp_heun_2_x0_sde", "dpm_2", "dpm_2_ancestral", "dpm_adaptive", "dpmpp_sde",
    "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp", "dpmpp_sde_gpu", "seeds_2", "seeds_3", "sa_solver_pece",
}  # fmt: skip


class World:
    """A real ComfyUI with the demo model in it, and the same model in diffusers."""

    def __init__(self) -> None:
        sys.path[:0] = [path for path in [os.environ.get("COMFYUI_SITE")] if path]
        self.preset = resolve("emoji-flux-32")
        self.pipe = self.preset.load_pipeline("cpu")
        self.pipe.set_progress_bar_config(disable=True)
        boot()
        importlib.import_module("comfy.sample")
        for name in ("samplers", "model_base", "model_patcher", "supported_models", "latent_formats"):
            setattr(self, name, importlib.import_module(f"comfy.{name}"))
        self.prompts = read_prompts("emoji-32")
        self.empty = torch.zeros(1, 4, 16, 16)
        load_pack()
        self.pack = importlib.import_module("adaptcache_nodes.demo")

    def patcher(self, config: Any, latent: type, kind: type, seed: int | None = None) -> Any:
        config.latent_format = latent()
        model = kind(config, device=torch.device("cpu"))
        if seed is not None:
            made = torch.Generator().manual_seed(seed)
            inner = model.diffusion_model
            for value in (*inner.parameters(), *(buffer for buffer in inner.buffers() if buffer.is_floating_point())):
                scale = value.shape[-1] ** -0.5 if value.ndim > 1 else 0.02
                value.data = torch.randn(value.shape, generator=made) * scale
        return self.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))

    def demo(self) -> Any:
        return self.pack.model_of(self.pipe)

    def prompt(self, text: str) -> Any:
        return self.pack.Clip(self.pipe, 16).encode_from_tokens_scheduled(text)

    def decode(self, latents: Tensor) -> Tensor:
        return self.pack.Vae(self.pipe).decode(latents)

    def sigmas(self, model: Any, sampler: str = "euler", steps: int = STEPS) -> Tensor:
        return self.samplers.KSampler(model, steps, "cpu", sampler, "simple").sigmas

    def sample(self, model: Any, text: Any, seed: int, sampler: str = "euler", **more: Any) -> Tensor:
        latent, cfg = more.pop("latent", self.empty), more.pop("cfg", 1.0)
        sigmas = more.pop("sigmas", None)
        sigmas = self.sigmas(model, sampler) if sigmas is None else sigmas
        positive = self.prompt(text) if isinstance(text, str) else text
        with torch.no_grad():
            return self._sampled(model, latent, seed, cfg, sampler, sigmas, positive, **more)

    def _sampled(
        self,
        model: Any,
        latent: Tensor,
        seed: int,
        cfg: float,
        sampler: str,
        sigmas: Tensor,
        positive: Any,
        **more: Any,
    ) -> Tensor:  # fmt: skip
        noise = self.sample_comfy.prepare_noise(latent, seed)
        return self.sample_comfy.sample_custom(
            model, noise, cfg, self.samplers.sampler_object(sampler), sigmas, positive, more.pop("negative", positive),
            latent, seed=seed, disable_pbar=True, **more,
        )  # fmt: skip

    @property
    def sample_comfy(self) -> Any:
        return sys.modules["comfy.sample"]

    def image(self, *given: Any, **more: Any) -> np.ndarray:
        return self.decode(self.sample(*given, **more))[0].numpy()


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def demo(world: World) -> Any:
    return world.demo()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*was fitted in diffusers")
        yield


def calibrated(world: World, model: Any, sampler: str = "euler", few: int = 4) -> Schedule:
    rows = [{"positive": world.prompt(text)} for text in world.prompts.calibration[:few]]
    sampling = Sampling(world.prompt(""), world.empty, sampler, "simple")
    return adaptcache.calibrate(
        ComfyEngine(model, sampling, world.decode), rows, STEPS, speed=2.8, batch_size=4, progress=False
    )


def test_a_full_run_is_that_of_diffusers_and_schedules_that_ship_are_worth_the_same(world: World, demo: Any) -> None:
    texts, exact = world.prompts.held_out[:2], torch.tensor([1 - i / STEPS for i in range(STEPS + 1)])

    def there(k: int, text: str) -> np.ndarray:
        seed = torch.Generator().manual_seed(50 + k)
        return world.pipe(
            text, num_inference_steps=STEPS, generator=seed, output_type="np", **world.preset.call
        ).images[0]

    full = [(world.image(demo, text, 50 + k, sigmas=exact), there(k, text)) for k, text in enumerate(texts)]
    assert min(psnr(*pair) for pair in full) >= 100  # where `psnr` ends
    for path in sorted((ROOT / "schedules").glob("emoji-flux-32-28-*.json")):
        schedule = Schedule.load(path)
        applied = Applied(demo, schedule)
        here = [psnr(world.image(applied.model, t, 50 + k, sigmas=exact), full[k][0]) for k, t in enumerate(texts)]
        with adaptcache.attach(world.pipe, schedule):
            known = [psnr(there(k, t), full[k][1]) for k, t in enumerate(texts)]
        print(f"\n{path.stem}: ComfyUI {np.round(here, 2)} dB, diffusers {np.round(known, 2)} dB")
        assert np.abs(np.subtract(here, known)).max() < 0.1
        assert applied.report().computed == schedule.steps()


def test_every_sampler_makes_the_planned_calls_or_says_why_not(world: World, demo: Any) -> None:
    schedule = Schedule.load(ROOT / "schedules" / "emoji-flux-32-28-2.8x.json")
    text, calls = world.prompt("pizza"), []
    handle = demo.model.diffusion_model.register_forward_pre_hook(lambda *_: calls.append(1))
    for name in world.samplers.SAMPLER_NAMES:
        applied = Applied(demo, schedule)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            before = world.sample(demo, text, 1, name)
            full = len(calls)
            calls.clear()
            world.sample(applied.model, text, 1, name)
            made, report = len(calls), applied.report()
            calls.clear()
            assert torch.equal(before, world.sample(demo, text, 1, name)), name
            calls.clear()
        followed = not report.why
        print(f"\n{name:32} full {full:3} ours {made:3} {report.why or 'followed'}", end="")
        assert followed == (name not in TWICE), name
        assert made == (len(schedule.steps()) if followed else full), name
    handle.remove()


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "res_multistep", "uni_pc", "euler_ancestral"])
def test_what_is_calibrated_in_comfyui_beats_reuse_and_as_many_plain_steps(
    world: World, demo: Any, sampler: str
) -> None:
    schedule = calibrated(world, demo, sampler)
    rule = schedule.rules[0].model_copy(update={"forecast": Extrapolate(order=0)})
    applied = Applied(demo, schedule, strict=True)
    reuse = Applied(demo, schedule.model_copy(update={"rules": (rule,)}))
    found: dict[str, list[float]] = {"ours": [], "reuse": [], "plain": []}
    few = world.sigmas(demo, sampler, len(schedule.steps()))
    for k, text in enumerate(world.prompts.held_out[:2]):
        full = world.image(demo, text, 90 + k, sampler)
        found["ours"].append(psnr(world.image(applied.model, text, 90 + k, sampler), full))
        found["reuse"].append(psnr(world.image(reuse.model, text, 90 + k, sampler), full))
        found["plain"].append(psnr(world.image(demo, text, 90 + k, sampler, sigmas=few), full))
    mean = {name: float(np.mean(values)) for name, values in found.items()}
    print(f"\n{sampler}: {len(schedule.steps())} of {STEPS} calls, {mean}")
    assert applied.report().evidence == "calibrated"
    assert mean["ours"] > mean["reuse"] and mean["ours"] > mean["plain"] + 6


def test_a_schedule_that_was_made_here_runs_in_diffusers(world: World, demo: Any) -> None:
    schedule = calibrated(world, demo)
    kwargs = {"num_inference_steps": STEPS, "output_type": "np", **world.preset.call}
    with (
        pytest.warns(UserWarning, match="was fitted with a ComfyUI"),
        adaptcache.attach(world.pipe, schedule) as handle,
    ):
        made = world.pipe(world.prompts.held_out[0], generator=torch.Generator().manual_seed(3), **kwargs).images[0]
    full = world.pipe(world.prompts.held_out[0], generator=torch.Generator().manual_seed(3), **kwargs).images[0]
    assert handle.report().computed == schedule.steps() and psnr(made, full) > 45


def test_cancelled_and_broken_runs_leave_the_model_clean(world: World, demo: Any) -> None:
    management = sys.modules["comfy.model_management"]
    text, schedule = world.prompt("pizza"), Schedule.load(ROOT / "schedules" / "emoji-flux-32-28-2.8x.json")
    applied = Applied(demo, schedule)
    full, ours = world.sample(demo, text, 1), world.sample(applied.model, text, 1)

    def cancel(i: int, *_: Any) -> None:
        if i == 7:
            management.interrupt_current_processing()
        management.throw_exception_if_processing_interrupted()

    with pytest.raises(management.InterruptProcessingException):
        world.sample(applied.model, text, 1, callback=cancel)

    def broken(arguments: Any) -> Any:
        raise RuntimeError("another node")

    failing = applied.model.clone()
    failing.set_model_sampler_post_cfg_function(broken)
    with pytest.raises(RuntimeError, match="another node"):
        world.sample(failing, text, 1)
    with pytest.warns(UserWarning, match="planned anew"):
        world.sample(applied.model, text, 1, sigmas=world.sigmas(demo, steps=20))
    assert torch.equal(world.sample(applied.model, text, 1), ours) and torch.equal(world.sample(demo, text, 1), full)


def test_image_to_image_batches_and_masks_run(world: World, demo: Any) -> None:
    schedule = Schedule.load(ROOT / "schedules" / "emoji-flux-32-28-2.8x.json")
    applied, text = Applied(demo, schedule), world.prompt("pizza")
    start = world.sample(demo, text, 5)
    sigmas = world.samplers.KSampler(demo, STEPS, "cpu", "euler", "simple", 0.6).sigmas
    with pytest.warns(UserWarning, match="planned anew"):
        made = world.decode(world.sample(applied.model, "cat", 1, latent=start, sigmas=sigmas))
    full = world.decode(world.sample(demo, "cat", 1, latent=start, sigmas=sigmas))
    assert applied.report().made == 10 and psnr(made.numpy(), full.numpy()) > 35
    both = world.sample(applied.model, text, 1, latent=world.empty.repeat(2, 1, 1, 1))
    truth = world.sample(demo, text, 1, latent=world.empty.repeat(2, 1, 1, 1))
    assert psnr(world.decode(both).numpy(), world.decode(truth).numpy()) > 40
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    kept = world.sample(applied.model, "cat", 1, latent=start, noise_mask=mask)
    assert torch.allclose(kept[..., :7], start[..., :7], atol=1e-4)


def test_clones_of_one_model_keep_their_schedules_apart(world: World, demo: Any) -> None:
    text, folder = world.prompt("pizza"), ROOT / "schedules"
    clones = [Applied(demo, Schedule.load(folder / f"emoji-flux-32-28-{speed}x.json")) for speed in (2, 4)]
    clones.append(Applied(demo, speed=2.0))
    alone = [world.sample(demo, text, 1), *(world.sample(one.model, text, 1) for one in clones)]
    assert [one.report().made for one in clones[:2]] == [14, 7]
    for _ in range(2):  # in turn, in one graph
        made = [world.sample(demo, text, 1), *(world.sample(one.model, text, 1) for one in clones)]
        assert all(torch.equal(*pair) for pair in zip(made, alone, strict=True))
    assert not torch.equal(alone[1], alone[2])


def test_lora_before_and_after_and_the_caches_of_comfyui_are_told(world: World) -> None:
    model = world.demo()
    schedule = calibrated(world, model, few=2)
    key = "diffusion_model.img_in.weight"
    weight = model.model.diffusion_model.img_in.weight
    lora = model.clone()
    lora.add_patches({key: ("diff", (torch.randn(weight.shape) * 0.02,))}, 0.8)
    before = fingerprint(lora)
    own = calibrated(world, lora, few=2)
    world.sample(lora, "pizza", 1)  # which merges the patch
    assert fingerprint(lora) == before and fingerprint(model) != before
    Applied(lora, own, strict=True)
    with pytest.raises(ScheduleError, match="other weights of Flux"):
        Applied(lora, schedule, strict=True)
    world.sample(model, "pizza", 1)  # which takes it out
    later = Applied(model, schedule, strict=True).model.clone()
    later.add_patches({key: ("diff", (torch.randn(weight.shape) * 0.02,))}, 0.8)
    with pytest.raises(ScheduleError, match="other weights of Flux"):
        world.sample(later, "pizza", 1)
    caches = importlib.import_module("comfy_extras.nodes_easycache")
    for node, name in ((caches.EasyCacheNode, "EasyCache"), (caches.LazyCacheNode, "LazyCache")):
        cached = node.execute(model, 0.2, 0.15, 0.95, False).args[0]
        with pytest.warns(UserWarning, match=f"would run on top of {name}"):
            world.sample(Applied(cached, schedule).model, "pizza", 1)


def tiny(world: World, kind: str) -> tuple[Any, Tensor, Any]:
    """Returns a MODEL, its latents and a conditioning of a class of ComfyUI, with random weights."""
    models, bases, formats = world.supported_models, world.model_base, world.latent_formats
    words = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(3))
    if kind == "sd15":
        config = models.SD15({
            "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
            "channel_mult": [1, 2], "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1],
            "transformer_depth_middle": 1, "context_dim": 32, "use_spatial_transformer": True, "num_heads": 4,
            "use_linear_in_transformer": False, "legacy": False, "use_temporal_attention": False,
            "adm_in_channels": None, "dtype": torch.float32,
        })  # fmt: skip
        return world.patcher(config, formats.SD15, bases.BaseModel, 1), torch.zeros(1, 4, 8, 8), [[words, {}]]
    if kind == "sd3":
        config = models.SD3({
            "input_size": None, "patch_size": 2, "in_channels": 16, "depth": 2, "adm_in_channels": 32,
            "context_embedder_config": {
                "target": "torch.nn.Linear", "params": {"in_features": 32, "out_features": 128},
            },
            "num_patches": 64, "pos_embed_max_size": 8, "pos_embed_scaling_factor": None, "dtype": torch.float32,
        })  # fmt: skip
        pooled = {"pooled_output": torch.randn(1, 32, generator=torch.Generator().manual_seed(4))}
        return world.patcher(config, formats.SD3, bases.SD3, 1), torch.zeros(1, 16, 8, 8), [[words, pooled]]
    config = models.WAN21_T2V({
        "image_model": "wan2.1", "model_type": "t2v", "dim": 48, "ffn_dim": 64, "num_heads": 4, "num_layers": 2,
        "in_dim": 16, "out_dim": 16, "text_dim": 32, "freq_dim": 32, "dtype": torch.float32,
    })  # fmt: skip
    return world.patcher(config, formats.Wan21, bases.WAN21, 1), torch.zeros(1, 16, 3, 8, 8), [[words, {}]]


@pytest.mark.parametrize(
    ("kind", "sampler", "cfg"), [("sd15", "dpmpp_2m", 3.0), ("sd3", "euler", 2.0), ("wan", "uni_pc", 2.0)]
)
def test_other_classes_calibrate_and_follow(world: World, kind: str, sampler: str, cfg: float) -> None:
    model, latent, words = tiny(world, kind)
    rows = [{"positive": [[words[0][0] * scale, words[0][1]]]} for scale in (0.7, 0.9, 1.1)]
    engine = ComfyEngine(model, Sampling(rows[0]["positive"], latent, sampler, "normal", cfg))
    schedule = adaptcache.calibrate(engine, rows, 12, budget=0.5, progress=False)
    applied = Applied(model, schedule, strict=True)
    rule = schedule.rules[0].model_copy(update={"forecast": Extrapolate(order=0)})
    reuse = Applied(model, schedule.model_copy(update={"rules": (rule,)}))
    sigmas = engine.sigmas(12)
    full, ours, plain = (
        world.sample(one, words, 1, sampler, latent=latent, cfg=cfg, sigmas=sigmas, negative=rows[0]["positive"])
        for one in (model, applied.model, reuse.model)
    )
    assert applied.report().evidence == "calibrated" and applied.report().made == 6
    assert (ours - full).square().mean() < (plain - full).square().mean()
    print(f"\n{kind}: {schedule.denoiser.class_name}, {schedule.grid.scheduler}")


def test_an_instant_schedule_is_better_than_reuse_on_the_demo_model(world: World, demo: Any) -> None:
    text, applied = "pizza noto style", Applied(demo, speed=2.0)
    full, made = (world.image(one, text, 9) for one in (demo, applied.model))
    few = world.image(demo, text, 9, sigmas=world.sigmas(demo, steps=applied.report().made))
    print(f"\ninstant {psnr(made, full):.1f} dB, {applied.report().made} plain steps {psnr(few, full):.1f} dB")
    assert applied.report().evidence == "theory" and psnr(made, full) > psnr(few, full)


def test_the_nodes_take_a_stranger_from_prompts_to_a_faster_workflow(
    world: World, demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("folder_paths"), "models_dir", str(tmp_path))
    texts = [*world.prompts.calibration[:4], world.prompts.held_out[0]]
    given = {
        "model": demo, "positive": [world.prompt(text) for text in texts], "negative": world.prompt(""),
        "vae": world.pack.Vae(world.pipe), "latent_image": {"samples": world.empty}, "steps": 12, "cfg": 1.0,
        "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0, "seed": 3, "speed": 2.0, "held_out": 1,
        "name": "mine",
    }  # fmt: skip
    sigmas = world.sigmas(demo, steps=12)
    with torch.inference_mode():  # as ComfyUI runs nodes
        text, images = walk_through(load_pack(), given, lambda fast: world.sample(fast, texts[-1], 7, sigmas=sigmas))
    print("\n" + text)
    assert images.shape == (3, 32, 32, 3)
