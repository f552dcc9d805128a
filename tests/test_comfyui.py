"""The engine for ComfyUI, on a stand-in of its wrappers, guiders and samplers: `tests/comfy_stand_in.py`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy_stand_in as stand_in
import pytest
import torch
from comfy_stand_in import SAMPLERS, Discrete, Flow, Patcher, prompt, stand_in_model
from torch import Tensor

import adaptcache
from adaptcache.engines.comfyui.apply import Applied, applied_to
from adaptcache.engines.comfyui.engine import ComfyEngine, Sampling, join_conditionings, noise_like
from adaptcache.engines.comfyui.gate import Gate, watched
from adaptcache.engines.comfyui.grid import times_of
from adaptcache.engines.comfyui.identity import fingerprint
from adaptcache.errors import AttachError, ScheduleError
from adaptcache.forecasts.extrapolate import Extrapolate
from adaptcache.hooks import SchedulerStep, StepHook
from adaptcache.policies.plan import Plan
from adaptcache.runs import Job, PipelineCall, PromptSet
from adaptcache.schedule.format import Denoiser as Fitted
from adaptcache.schedule.format import Grid
from adaptcache.schedule.rule import Rule
from adaptcache.schedule.schedule import Schedule
from adaptcache.step import Step

STEPS = 12
LATENT = torch.zeros(1, 4, 3, 3)
ONCE = [name for name in SAMPLERS if name != "heun"]


@pytest.fixture(autouse=True)
def comfy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name, module in stand_in.stand_in_modules(str(tmp_path)).items():
        monkeypatch.setitem(sys.modules, name, module)
    with torch.no_grad():
        yield


def engine(model: Patcher, sampler: str = "euler", cfg: float = 1.0, **more: Any) -> ComfyEngine:
    return ComfyEngine(model, Sampling(prompt(0), LATENT, sampler, "simple", cfg, **more), lambda x: x.movedim(1, -1))


def sample(model: Patcher, sampler: str = "euler", seed: int = 7, cfg: float = 1.0, **more: Any) -> Tensor:
    steps = more.pop("steps", STEPS)
    latent, denoise = more.pop("latent", LATENT), more.pop("denoise", 1.0)
    guider = more.pop("guider", stand_in.CFGGuider)(model)
    guider.set_conds(more.pop("positive", prompt(seed)), prompt(0))
    guider.set_cfg(cfg)
    sigmas = stand_in.KSampler(model, steps, None, sampler, "simple", denoise).sigmas
    noise = torch.cat([noise_like(latent[:1], seed + k) for k in range(len(latent))])
    return guider.sample(noise, latent, stand_in.Sampler(SAMPLERS[sampler]), sigmas, seed=seed, **more)


def calibrated(model: Patcher, sampler: str = "euler", cfg: float = 1.0, **more: Any) -> Schedule:
    rows = [{"positive": prompt(k)} for k in range(1, 7)]
    options = {"eval_prompts": rows[4:], "batch_size": 2, "progress": False, **more}
    return adaptcache.calibrate(engine(model, sampler, cfg), rows[:4], STEPS, budget=0.5, **options)


def reuse(model: Patcher, *steps: int) -> Schedule:
    times = times_of(model.get_model_object("model_sampling"), engine(model).sigmas(STEPS)[:-1].tolist())
    rule = Rule(policy=Plan.of(steps, times), forecast=Extrapolate(order=0))
    return Schedule(name="reuse", grid=Grid(times=times), rules=(rule,))


class Counter(StepHook):
    """Compares where it says that a sampler lands with where it lands.

    Arguments:
        skipped: The steps that are not computed.
        factor: What outputs are multiplied with at computed steps.
    """

    def __init__(self, skipped: set[int] = frozenset(), factor: float = 1.0) -> None:
        self.skipped, self.factor, self.expected, self.errors = skipped, factor, None, []

    def should_compute(self, step: Step) -> bool:
        return step.index not in self.skipped

    def model_output(self, step: SchedulerStep) -> Tensor:
        computed = step.u if self.factor == 1 else step.u * self.factor
        self.last = computed if step.computed else self.last * 0.9
        self.expected = step.preview(self.last)
        return self.last

    def on_step_end(self, step: SchedulerStep, latents: Tensor) -> None:
        self.errors.append(float((latents - self.expected).abs().max()))


@pytest.mark.parametrize("sampling", [Flow, Discrete], ids=["flow", "epsilon"])
@pytest.mark.parametrize("sampler", ONCE)
def test_a_preview_lands_where_the_sampler_lands_and_computing_all_changes_no_bit(sampler: str, sampling: Any) -> None:
    model = stand_in_model(sampling())
    hook = Counter()
    gate = Gate(hook, keep=True)
    assert torch.equal(sample(watched(model, gate), sampler), sample(model, sampler))
    assert len(hook.errors) == STEPS and max(hook.errors) < 1e-5
    assert gate.made == ((True,),) * STEPS
    skipping = Counter({2, 3, 7, STEPS - 1}, 0.98)
    sample(watched(model, Gate(skipping, keep=True)), sampler)
    assert len(skipping.errors) == STEPS and max(skipping.errors) < 1e-5


def calls_of(model: Patcher) -> list[float]:
    levels: list[float] = []
    model.model.diffusion_model.register_forward_pre_hook(lambda _, given: levels.append(float(given[1][0])))
    return levels


@pytest.mark.parametrize("sampler", ONCE)
def test_the_denoiser_is_called_at_the_planned_steps_only(sampler: str) -> None:
    model = stand_in_model()
    levels = calls_of(model)
    applied = Applied(model, reuse(model, 0, 4, 9))
    sample(applied.model, sampler)
    assert applied.report().computed == [0, 4, 9]
    assert len(levels) == 3 * (1 + (sampler == "euler_cfg_pp"))


def test_a_sampler_that_calls_twice_a_step_makes_full_runs_and_says_so() -> None:
    model = stand_in_model()
    applied = Applied(model, reuse(model, 0, 4, 9))
    with pytest.warns(UserWarning, match="heun calls the model 23 times in 12 steps: all steps are computed"):
        made = sample(applied.model, "heun")
    assert torch.equal(made, sample(model, "heun"))
    report = applied.report()
    assert report.made == 23 and report.skipped == 0 and "heun" in report.why
    with pytest.raises(AttachError, match="heun calls the model 23 times"):
        calibrated(model, "heun")


def test_a_sampler_that_leaves_its_rehearsal_is_computed_from_there_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def turning(model: Any, x: Tensor, sigmas: Tensor, extra: Any, tell: Any) -> Tensor:
        x = stand_in.euler(model, x, sigmas[:6], extra, tell)
        sigmas = sigmas[5:] * (1.0 if float(x.abs().max()) == 0 or x.numel() < 10 else 0.9)
        return stand_in.euler(model, x, sigmas, extra, tell)

    monkeypatch.setitem(SAMPLERS, "turning", turning)
    model = stand_in_model()
    applied = Applied(model, reuse(model, 0, 4, 9))
    with pytest.warns(UserWarning, match="not as in its rehearsal"):
        sample(applied.model, "turning")
    assert applied.report().computed == [0, 4, *range(5, STEPS)]


@pytest.mark.parametrize(
    ("sampler", "sampling", "cfg"),
    [("euler", Flow, 1.0), ("dpmpp_2m", Discrete, 3.0), ("euler_ancestral", Flow, 1.0)],
    ids=["euler", "dpmpp_2m", "euler_ancestral"],
)
def test_what_is_calibrated_is_followed_as_measured_and_better_than_reuse(
    sampler: str, sampling: Any, cfg: float
) -> None:
    model = stand_in_model(sampling())
    schedule = calibrated(model, sampler, cfg)
    assert schedule.evidence is not None and schedule.evidence.calls == (6, STEPS)
    applied = Applied(model, schedule, strict=True)
    full, made = (sample(one, sampler, cfg=cfg) for one in (model, applied.model))
    assert applied.report().evidence == "calibrated" and applied.report().made == 6
    rule = schedule.rules[0].model_copy(update={"forecast": Extrapolate(order=0)})
    other = Applied(model, schedule.model_copy(update={"rules": (rule,)}))
    assert (made - full).square().mean() < (sample(other.model, sampler, cfg=cfg) - full).square().mean() / 2


def test_a_batch_runs_as_its_samples_alone() -> None:
    model = stand_in_model()
    schedule = calibrated(model)
    applied = Applied(model, schedule)
    positive = join_conditionings([prompt(7), prompt(8)])
    both = sample(applied.model, latent=LATENT.repeat(2, 1, 1, 1), positive=positive)
    alone = torch.cat([sample(applied.model, seed=7), sample(applied.model, seed=8)])
    assert torch.allclose(both, alone, atol=1e-5)


def test_conditionings_that_differ_in_length_are_no_batch() -> None:
    with pytest.raises(ValueError, match="cannot be one batch: give batch_size=1"):
        join_conditionings([prompt(1), prompt(2, (1, 4, 2, 1))])


class Cancelled(Exception):
    pass


def test_a_run_that_is_cancelled_leaves_nothing_behind() -> None:
    model = stand_in_model()
    schedule = calibrated(model)
    applied = Applied(model, schedule)
    before, first = sample(model), sample(applied.model)

    def cancel(i: int, *_: Any) -> None:
        if i == 5:
            raise Cancelled

    with pytest.raises(Cancelled):
        sample(applied.model, callback=cancel)
    assert torch.equal(sample(applied.model), first) and torch.equal(sample(model), before)
    assert not applied_to(applied.model).loops and model.wrappers == {}
    with pytest.raises(Cancelled):
        ran = ComfyEngine(model, Sampling(prompt(0), LATENT), check=lambda: cancel(5))
        adaptcache.calibrate(ran, [{"positive": prompt(1)}], STEPS, speed=2.0, progress=False)
    assert torch.equal(sample(model), before) and model.model.current_patcher is None


def test_clones_of_one_model_keep_their_schedules_apart() -> None:
    model = stand_in_model()
    one, other = Applied(model, reuse(model, 0, 6)), Applied(model, reuse(model, 0, 3, 6, 9))
    alone = sample(one.model), sample(other.model)
    again = sample(one.model.clone()), sample(other.model), sample(one.model)
    assert torch.equal(again[0], alone[0]) and torch.equal(again[1], alone[1]) and torch.equal(again[2], alone[0])
    assert one.report().made == 2 and other.report().made == 4
    with pytest.raises(ScheduleError, match="a schedule on this MODEL already"):
        Applied(one.model, reuse(model, 0, 6))


def test_other_settings_than_the_calibrated_are_warned_of_or_refused() -> None:
    model = stand_in_model()
    schedule = calibrated(model, cfg=2.0)

    def run(match: str, other: Patcher = model, **call: Any) -> Applied:
        applied = Applied(other, schedule)
        with pytest.warns(UserWarning, match=match):
            sample(applied.model, **{"cfg": 2.0, **call})
        assert applied.report().evidence == "extrapolated"
        return applied

    run("another guidance: cfg 2 and now 3", cfg=3.0)
    run("fitted with euler, this is dpmpp_2m", sampler="dpmpp_2m")
    run("latents of 4 x 3 x 3 and now 4 x 5 x 5", latent=torch.zeros(1, 4, 5, 5))
    run("planned anew", steps=20)
    run("planned anew", denoise=0.5, latent=torch.full((1, 4, 3, 3), 0.2))
    run("a DualGuider: it was not measured", guider=type("DualGuider", (stand_in.CFGGuider,), {}))
    run("a ControlNet on one side only", positive=[[prompt(7)[0][0], {"control": object()}]])
    shifted = model.clone()
    shifted.add_object_patch("model_sampling", Flow(3.0))
    with pytest.warns(UserWarning, match="other nodes on it"):
        run("planned anew", shifted)
    with pytest.raises(ScheduleError, match="cfg 2 and now 8; as many plain steps are better there"):
        sample(Applied(model, schedule).model, cfg=8.0)
    with pytest.raises(ScheduleError, match="cfg 2 and now 3"):
        sample(Applied(model, schedule, strict=True).model, cfg=3.0)


@pytest.mark.parametrize(("key", "name"), [("easycache", "EasyCache"), ("lazycache", "LazyCache")])
def test_a_cache_of_comfyui_on_the_same_model_is_told(key: str, name: str) -> None:
    model = stand_in_model()
    cached = model.clone()
    cached.add_wrapper_with_key("predict_noise", key, lambda executor, *given: executor(*given))
    with pytest.warns(UserWarning, match=f"would run on top of {name}"):
        sample(Applied(cached, reuse(model, 0, 6)).model)
    later = Applied(model, reuse(model, 0, 6)).model
    later.add_wrapper_with_key("predict_noise", key, lambda executor, *given: executor(*given))
    with pytest.warns(UserWarning, match=f"would run on top of {name}"):
        sample(later)
    with pytest.raises(ValueError, match=f"{name} is on this MODEL"):
        calibrated(cached)


def test_patched_weights_are_other_weights_whether_they_are_merged_or_not() -> None:
    model = stand_in_model()
    schedule = calibrated(model)
    lora = model.clone()
    lora.add_patches({"diffusion_model.out": (torch.ones(4, 4) * 0.1,)}, 0.7)
    with pytest.warns(UserWarning, match=r"other weights of Denoiser \(0 patched weights, here 1\)"):
        Applied(lora, schedule)
    known = fingerprint(lora)
    weaker = model.clone()
    weaker.add_patches({"diffusion_model.out": (torch.ones(4, 4) * 0.1,)}, 0.6)
    assert fingerprint(weaker)["weights_hash"] != known["weights_hash"]
    kept = model.model.diffusion_model.out.data.clone()
    lora.backup["diffusion_model.out"] = type("Kept", (), {"weight": kept})
    model.model.diffusion_model.out.data += 0.07  # merged, as it is while a MODEL with patches is loaded
    assert fingerprint(lora) == known
    lora.model_options["reference"] = torch.ones(2, 2)  # what some nodes leave there
    Applied(lora, calibrated(lora), strict=True)
    patched_after = Applied(model, schedule).model.clone()
    patched_after.add_patches({"diffusion_model.out": (torch.ones(4, 4) * 0.1,)}, 0.7)
    with pytest.warns(UserWarning, match="other weights"):
        sample(patched_after)


def fitted(model: Patcher, **update: Any) -> Schedule:
    return calibrated(model, eval_prompts=()).model_copy(update=update)


def test_schedules_of_other_models_sites_and_outputs_are_refused() -> None:
    model = stand_in_model()
    schedule = fitted(model)
    with pytest.raises(ScheduleError, match="fitted on a FluxTransformer2DModel, this MODEL has a Denoiser"):
        Applied(model, schedule.model_copy(update={"denoiser": Fitted(**{"class": "FluxTransformer2DModel"})}))
    with pytest.raises(ScheduleError, match="in ComfyUI whole steps are skipped"):
        Applied(model, Schedule.of("fbcache"))
    with pytest.raises(ScheduleError, match=r"outputs of another kind \(flow_prediction, this MODEL: epsilon\)"):
        Applied(stand_in_model(Discrete()), schedule)


def test_epsilon_schedules_know_the_latents_of_their_scheduler() -> None:
    """Those of Euler are x0 + sigma * noise, those of DDIM that over sqrt(1 + sigma^2)."""
    model = stand_in_model(Discrete())
    seen: dict[bool, list[Tensor]] = {}

    class Look(StepHook):
        def model_output(self, step: SchedulerStep) -> Tensor:
            seen.setdefault(plain, []).append(step.x)
            return step.u

    for plain in (False, True):
        sample(watched(model, Gate(Look(), plain=plain)))
    levels = engine(model).sigmas(STEPS)[:-1]
    for level, scaled, raw in zip(levels, seen[False], seen[True], strict=True):
        assert torch.allclose(scaled * (1 + level**2).sqrt(), raw, rtol=1e-5)
    assert float(seen[False][0].std()) == pytest.approx(1, abs=0.2)


def test_times_are_those_of_diffusers_schedulers() -> None:
    from diffusers import DDIMScheduler

    model = stand_in_model(Discrete())
    there = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    levels = ((1 - there.alphas_cumprod) / there.alphas_cumprod).sqrt()
    times = times_of(model.model.model_sampling, [float(levels[t]) for t in (999, 500, 40)])
    assert times == pytest.approx((0.999, 0.5, 0.04), abs=2e-5)


def test_a_reference_with_finer_steps_goes_through_every_level_of_the_grid() -> None:
    model = stand_in_model()
    seen: list[tuple[float, ...]] = []

    class Look(StepHook):
        def on_run_start(self, times: tuple[float, ...]) -> None:
            seen.append(times)

    rows = PromptSet.of([{"positive": prompt(1)}])
    for refine in (1, 3):
        engine(model).run(Look(), Job(PipelineCall(STEPS), rows, refine=refine))
    assert len(seen[1]) == 3 * STEPS and seen[1][::3] == pytest.approx(seen[0])


def test_runs_in_lockstep_have_the_patcher_of_their_own_model() -> None:
    """`calibrate` runs four batches at once, and the model asserts that its patcher is set."""
    assert calibrated(stand_in_model(), batch_size=1).evidence is not None


@pytest.mark.parametrize("sampling", [Flow, Discrete], ids=["flow", "epsilon"])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_an_instant_schedule_is_made_for_the_sampler_and_the_steps_of_each_run(
    sampler: str, sampling: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ADAPTCACHE_HOME", str(tmp_path))
    model = stand_in_model(sampling())
    applied = Applied(model, speed=2.0)
    full, made = (sample(one, sampler, steps=20) for one in (model, applied.model))
    report = applied.report()
    assert report.made == 10 and report.evidence == "theory" and len(applied.schedule.grid.times) == 20
    simple = Applied(model, applied.schedule.model_copy(update={"rules": (
        applied.schedule.rules[0].model_copy(update={"forecast": Extrapolate(order=0)}),
    ), "grid": Grid(times=applied.schedule.grid.times)}))  # fmt: skip
    assert (made - full).square().mean() < (sample(simple.model, sampler, steps=20) - full).square().mean()
    sample(applied.model, sampler, steps=16)
    assert applied.report().made == 8
    with pytest.raises(ScheduleError, match="euler_ancestral adds noise at its steps"):
        sample(applied.model, "euler_ancestral", steps=20)
    with pytest.raises(ScheduleError, match="no instant schedule for sa_solver: it cannot be rehearsed"):
        sample(applied.model, "sa_solver", steps=20)
    with pytest.warns(UserWarning, match="planned anew"):  # without theory
        assert sample(Applied(model, calibrated(model)).model, "sa_solver", steps=20).isfinite().all()


class Vae:
    """Decodes latents to images, as a VAE does."""

    def decode(self, latents: Tensor) -> Tensor:
        return latents.movedim(1, -1)


def test_the_nodes_take_a_stranger_from_prompts_to_a_faster_workflow() -> None:
    model = stand_in_model()
    given = {
        "model": model, "positive": [prompt(k) for k in range(1, 6)], "negative": prompt(0), "vae": Vae(),
        "latent_image": {"samples": LATENT}, "steps": 12, "sampler_name": "euler", "scheduler": "simple", "cfg": 1.0,
        "denoise": 1.0, "seed": 3, "speed": 2.0, "held_out": 1, "name": "mine",
    }  # fmt: skip
    _, images = stand_in.walk_through(stand_in.load_pack(), given, lambda fast: sample(fast, seed=20))
    assert images.shape == (3, 3, 3, 4)


def test_the_nodes_say_what_is_missing_before_anything_is_run() -> None:
    nodes = {name: kind() for name, kind in stand_in.load_pack().NODE_CLASS_MAPPINGS.items()}
    model = stand_in_model()
    given = {
        "model": model, "negative": prompt(0), "latent_image": {"samples": LATENT}, "steps": 12, "cfg": 1.0,
        "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0, "seed": 3, "speed": 2.0,
        "held_out": 1, "name": "",
    }  # fmt: skip

    def calibrate(**more: Any) -> Any:
        lists = {name: [value] for name, value in {**given, **more}.items()}
        return nodes["AdaptcacheCalibrate"].calibrate(positive=[prompt(1)], **lists)

    with pytest.raises(ValueError, match="connect a VAE, or set held_out to 0"):
        calibrate()
    with pytest.raises(ValueError, match="leave none to calibrate on"):
        calibrate(vae=Vae())
    with pytest.raises(ValueError, match="has a mask"):
        calibrate(vae=Vae(), held_out=0, latent_image={"samples": LATENT, "noise_mask": LATENT})
    with pytest.raises(ValueError, match="name"):
        calibrate(held_out=0, name="../elsewhere")
    with pytest.raises(ValueError, match="connect the output of Apply Schedule"):
        nodes["AdaptcacheReport"].report(model, {})
    with pytest.raises(ValueError, match="write one a line"):
        nodes["AdaptcachePrompts"].split(" \n")


def test_every_input_of_a_node_has_a_tooltip_and_every_node_a_description() -> None:
    pack = stand_in.load_pack()
    assert pack.NODE_CLASS_MAPPINGS.keys() == pack.NODE_DISPLAY_NAME_MAPPINGS.keys()
    for kind in pack.NODE_CLASS_MAPPINGS.values():
        known = kind.INPUT_TYPES()
        assert kind.DESCRIPTION.endswith(".") and hasattr(kind, kind.FUNCTION)
        for _, options in {**known["required"], **known.get("optional", {})}.values():
            assert options["tooltip"].endswith(".")


def test_the_workflows_name_nodes_and_inputs_that_there_are() -> None:
    ours = stand_in.load_pack().NODE_CLASS_MAPPINGS
    found = [stand_in.check_workflow(json.loads(path.read_text()), ours) for path in stand_in.PACK.rglob("*.json")]
    assert sorted(found) == [2, 3, 3, 6]
