"""Situations in which a cache may be silently wrong: right, refused or wrong.

    PYTHONPATH=. python benchmarks/situations.py
    PYTHONPATH=../before python benchmarks/situations.py     # the same of another checkout

Tiny pipelines of diffusers' own classes with random weights. An image is wrong where it is far from that of the full
run; a report is wrong where it does not count the forwards that were made, or says "calibrated" of what was not
measured; and a cache is wrong where it gives what belongs to another pipeline.
"""

# ruff: noqa: ANN001, ANN002, ANN003, ANN201, ANN202, ANN204
# mypy: ignore-errors

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import os
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import diffusers
import torch
from peft import LoraConfig
from torch import Tensor, nn

import adaptcache
from adaptcache.errors import AttachError, ScheduleError
from tests.pipelines.flux import flux_parts, flux_prompts
from tests.pipelines.setup import noise
from tests.pipelines.unet import sd_parts
from tests.toy import Denoiser

try:
    from adaptcache.cache import Cache
except ImportError:  # version 0.1
    from adaptcache.profiling.store import Store as Cache

STEPS, FAR = 8, 0.05  # squared error over the variance of the full run: a forecast of these smooth models has less
REFUSALS = (AttachError, ScheduleError)
SITUATIONS: dict[int, dict[str, Callable[[], str]]] = {kind: {} for kind in range(1, 7)}
TITLES = {
    1: "steps are followed",
    2: "all denoisers and schedulers",
    3: "identity",
    4: "never attached",
    5: "what was measured",
    6: "several loops in a call",
}
SIZE = {"height": 16, "width": 16}
ROWS = [{"prompt_embeds": noise(k, 1, 5, 16)} for k in range(3)]
SD = {**SIZE, "negative_prompt_embeds": noise(9, 1, 5, 16)}


def situation(kind: int, name: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Registers a function that tries a situation, and returns "right", "refused" or what was wrong."""

    def register(function: Callable[[], str]) -> Callable[[], str]:
        SITUATIONS[kind][name] = function
        return function

    return register


# What situations are made of


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval()
    return pipe


def stable(kind: type = diffusers.StableDiffusionPipeline, **parts: Any) -> Any:
    torch.manual_seed(0)
    return quiet(kind(**sd_parts() | parts))


def flux(kind: type = diffusers.FluxPipeline) -> Any:
    torch.manual_seed(0)
    return quiet(kind(**flux_parts()))


def fitted(pipe: Any, rows: Any = ROWS, call: Any = SD, **more: Any) -> Any:
    """Returns the schedule of a pipeline."""
    return adaptcache.calibrate(pipe, rows[:2], steps=STEPS, budget=0.5, call=call, **more)


def made(pipe: Any, *, row: Any = ROWS[0], call: Any = SD, **more: Any) -> Tensor:
    """Returns what a call makes, not decoded: the second of two outputs behind the first."""
    given = {"num_inference_steps": STEPS, "output_type": "latent", "generator": torch.Generator().manual_seed(5)}
    result = pipe(**given | row | call | more)
    first = result[0] if isinstance(result, tuple) else result.images if "images" in result else result.frames
    return torch.as_tensor(first)


@contextlib.contextmanager
def forwards(pipe: Any) -> Iterator[list[str]]:
    """Notes the forwards of all modules that are called with a time."""
    calls: list[str] = []
    hooks = [
        part.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
        for name, part in pipe.components.items()
        if isinstance(part, nn.Module) and name not in ("vae", "text_encoder")
    ]
    yield calls
    for hook in hooks:
        hook.remove()


def far(image: Tensor, full: Tensor) -> float:
    return float((image - full).square().mean() / full.var())


def compared(pipe: Any, schedule: Any, run: Callable[[], Tensor], measured: bool = True, total: int = 0) -> str:
    """Runs in full and by the schedule, and says what is wrong.

    Arguments:
        measured: Whether the schedule was calibrated on this.
        total: The forwards of a full run, where the report has to know of all of them.
    """
    full = run()
    try:
        with adaptcache.attach(pipe, schedule) as handle, forwards(pipe) as calls:
            image = run()
            return faults(image, full, handle.report(), calls, measured, total)
    except REFUSALS:
        return "refused"


def faults(image: Tensor, full: Tensor, report: Any, calls: list[str], measured: bool, total: int = 0) -> str:
    """Returns what is wrong of an image and a report, or "right"."""
    found = []
    if (error := far(image, full)) > FAR:
        found.append(f"image off by {100 * error:.0f} % of its variance")
    if report.made != len(calls) or (total and report.made + report.skipped != total):
        found.append(f"report of {report.made} of {report.made + report.skipped} calls, made {len(calls)}")
    if not measured and report.evidence == "calibrated":
        found.append('"calibrated"')
    return ", ".join(found) or "right"


# 1. Steps are followed


class Loop(diffusers.StableDiffusionPipeline):
    """A pipeline with a loop of its own: each subclass says how it steps."""

    @torch.no_grad()
    def __call__(self, prompt_embeds=None, num_inference_steps=STEPS, generator=None, **_):
        x = torch.randn(2, 1, 4, 8, 8, generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        self.hidden = prompt_embeds
        return (self.denoised(x, list(self.scheduler.timesteps)),)

    def u(self, x: Tensor, t: Any) -> Tensor:
        return self.unet(x, t, encoder_hidden_states=self.hidden, return_dict=False)[0]

    def stepped(self, x: Tensor, t: Any) -> Tensor:
        return self.scheduler.step(self.u(x, t), t, x, return_dict=False)[0]


def by_loop(kind: type, measured: bool = False, total: int = 0) -> str:
    """Attaches the schedule of the plain pipeline to one with another loop of the same steps."""
    pipe = stable(kind)
    schedule = fitted(stable(Plain), call={})
    return compared(pipe, schedule, lambda: made(pipe, call={}), measured, total)


class Plain(Loop):
    def denoised(self, x, times):
        x = x[0]
        for t in times:
            x = self.stepped(x, t)
        return x


@situation(1, "a loop as it was calibrated")
def plain_loop() -> str:
    return by_loop(Plain, measured=True, total=STEPS)


@situation(1, "tiles, one after the other at each time")
def tiles() -> str:
    class Tiles(Loop):
        def denoised(self, x, times):
            for t in times:
                x = torch.stack([self.stepped(tile, t) for tile in x])
            return x

    return by_loop(Tiles, total=2 * STEPS)


@situation(1, "panorama of two views (StableDiffusionPanoramaPipeline)")
def panorama() -> str:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, norm_num_groups=2, layers_per_block=1,
        mid_block_add_attention=False,
    )  # fmt: skip
    pipe = quiet(diffusers.StableDiffusionPanoramaPipeline(**sd_parts() | {"vae": vae}))
    wide = SD | {"height": 512, "width": 576}
    return compared(pipe, fitted(stable()), lambda: made(pipe, call=wide), measured=False, total=2 * STEPS)


@situation(1, "regions: two calls, one step")
def regions() -> str:
    class Regions(Loop):
        def denoised(self, x, times):
            x, mask = x[0], (torch.arange(8) < 4).float()
            for t in times:
                u = mask * self.u(x, t) + (1 - mask) * self.u(x.flip(-1), t).flip(-1)
                x = self.scheduler.step(u, t, x, return_dict=False)[0]
            return x

    return by_loop(Regions, total=2 * STEPS)


@situation(1, "a loop that stops half way")
def stops() -> str:
    class Stops(Loop):
        def denoised(self, x, times):
            x = x[0]
            for t in times[: STEPS // 2]:
                x = self.stepped(x, t)
            return x

    return by_loop(Stops, measured=True, total=STEPS // 2)


@situation(1, "a loop that takes every second timestep")
def every_second() -> str:
    class Strides(Loop):
        def denoised(self, x, times):
            x = x[0]
            for t in times[::2]:
                x = self.stepped(x, t)
            return x

    return by_loop(Strides)


@situation(1, "a loop that goes back in time (RePaint)")
def goes_back() -> str:
    class Back(Loop):
        def denoised(self, x, times):
            x = x[0]
            for t in [*times[:4], *times[2:4], *times[2:]]:
                x = self.stepped(x, t)
            return x

    return by_loop(Back)


@situation(1, "each step twice, averaged")
def twice() -> str:
    class Twice(Loop):
        def denoised(self, x, times):
            x = x[0]
            for t in times:
                x = (self.stepped(x, t) + self.stepped(x.flip(-1), t).flip(-1)) / 2
            return x

    return by_loop(Twice, total=2 * STEPS)


@situation(1, "latents at two times (diffusion forcing)")
def forcing() -> str:
    class Forcing(Loop):
        def denoised(self, x, times):
            (x, y), other = x, copy.deepcopy(self.scheduler)
            for index in range(len(times) + 1):  # y is a step behind
                if index < len(times):
                    x = self.stepped(x, times[index])
                if index:
                    t = times[index - 1]
                    y = other.step(self.u(y, t), t, y, return_dict=False)[0]
            return torch.cat([x, y])

    return by_loop(Forcing)


def sampled(scheduler: Any, steps: int) -> str:
    """Calibrates with a sampler and runs with it."""
    pipe = stable(scheduler=scheduler)
    total = 2 * steps - 1 if "Heun" in type(scheduler).__name__ or "KDPM2" in type(scheduler).__name__ else 0
    schedule = adaptcache.calibrate(pipe, ROWS[:2], steps=steps, budget=0.7, call=SD)
    return compared(pipe, schedule, lambda: made(pipe, num_inference_steps=steps), total=total)


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@situation(1, "two calls at a time (HeunDiscreteScheduler)")
def heun() -> str:
    return sampled(diffusers.HeunDiscreteScheduler(**BETAS), 10)


@situation(1, "times equal but for rounding (KDPM2AncestralDiscreteScheduler)")
def kdpm2() -> str:
    try:
        return sampled(diffusers.KDPM2AncestralDiscreteScheduler(**BETAS), 10)
    except ValueError as error:
        return f"fails after the full runs: {' '.join(str(error).split())[:40]}"


# 2. All denoisers and schedulers


class Toy:
    """A pipeline of small denoisers whose names and roles each subclass gives."""

    NAMES: tuple[str, ...] = ("transformer",)
    SCHEDULERS: tuple[str, ...] = ("scheduler",)

    config, dtype = types.SimpleNamespace(_name_or_path="toy"), torch.float32

    def __init__(self) -> None:
        torch.manual_seed(0)
        for number, name in enumerate(self.NAMES):
            part = Denoiser()
            for weights in part.parameters():
                weights.data *= 1 - 0.1 * number
            setattr(self, name, part)
        for name in self.SCHEDULERS:
            setattr(self, name, diffusers.FlowMatchEulerDiscreteScheduler())

    @property
    def components(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in (*self.NAMES, *self.SCHEDULERS)}

    def set_progress_bar_config(self, **_: Any) -> None:
        pass

    @torch.no_grad()
    def __call__(self, prompt="", num_inference_steps=STEPS, generator=None, output_type="latent", return_dict=False):
        generators = generator if isinstance(generator, list) else [generator]
        x = torch.cat([torch.randn(1, 9, 6, generator=one) for one in generators])
        for name in self.SCHEDULERS:
            getattr(self, name).set_timesteps(num_inference_steps)
        for index, t in enumerate(self.scheduler.timesteps):
            x = self.stepped(index, t, x)
        return (x,)

    def out(self, name: str, t: Any, x: Tensor, condition: float = 0.5) -> Tensor:
        return getattr(self, name)(x, (t / 1000).expand(len(x)), torch.full((1, 1, 1), condition))[0]

    def stepped(self, index: int, t: Any, x: Tensor) -> Tensor:
        return self.scheduler.step(self.out(self.NAMES[0], t, x), t, x, return_dict=False)[0]


def all_followed(kind: type[Toy], total: int) -> str:
    pipe = kind()
    try:
        schedule = fitted(pipe, rows=["", "a"], call={})
    except REFUSALS:
        return "refused"
    found = compared(pipe, schedule, lambda: made(pipe, row={"prompt": ""}, call={}), total=total)
    if found == "right":
        with adaptcache.attach(pipe, schedule), forwards(pipe) as calls:
            made(pipe, row={"prompt": ""}, call={})
        if len(calls) > 0.8 * total:
            return f"{len(calls)} of {total} calls made at a budget of half"
    return found


@situation(2, "unconditional_transformer for the branch without a prompt (as Ideogram 4)")
def two_denoisers() -> str:
    class Guides(Toy):
        NAMES = ("transformer", "unconditional_transformer")

        def stepped(self, index, t, x):
            a, b = (self.out(name, t, x) for name in self.NAMES)
            return self.scheduler.step(b + 3 * (a - b), t, x, return_dict=False)[0]

    return all_followed(Guides, 2 * STEPS)


@situation(2, "transformer_ref at every step (as MiniMax-H3)")
def reference() -> str:
    class Refers(Toy):
        NAMES = ("transformer", "transformer_ref")

        def stepped(self, index, t, x):
            condition = self.out("transformer_ref", t, x).mean()
            return self.scheduler.step(self.out("transformer", t, x, float(condition)), t, x, return_dict=False)[0]

    return all_followed(Refers, 2 * STEPS)


@situation(2, "a denoiser of a name of one's own")
def own_name() -> str:
    class Paints(Toy):
        NAMES = ("painter",)

    return all_followed(Paints, STEPS)


@situation(2, "a prior")
def prior() -> str:
    class Prior(Toy):
        NAMES = ("prior",)

    return all_followed(Prior, STEPS)


@situation(2, "a refiner takes over")
def refiner() -> str:
    class Refines(Toy):
        NAMES = ("transformer", "refiner")

        def stepped(self, index, t, x):
            return self.scheduler.step(self.out(self.NAMES[index >= STEPS // 2], t, x), t, x, return_dict=False)[0]

    return all_followed(Refines, STEPS)


@situation(2, "a second scheduler for the sound")
def sound() -> str:
    class Sounds(Toy):
        SCHEDULERS = ("scheduler", "audio_scheduler")

        def stepped(self, index, t, x):
            u = self.out("transformer", t, x)
            y = self.audio if index else x.flip(-1)
            self.audio = self.audio_scheduler.step(u.flip(-1), t, y, return_dict=False)[0]
            x = self.scheduler.step(u, t, x, return_dict=False)[0]
            return torch.cat([x, self.audio]) if index == STEPS - 1 else x

    return all_followed(Sounds, STEPS)


@situation(2, "the second scheduler steps first")
def sound_first() -> str:
    class SoundFirst(Toy):
        SCHEDULERS = ("scheduler", "sound")

        def stepped(self, index, t, x):
            u = self.out("transformer", t, x)
            self.audio = self.sound.step(2 * u, t, self.audio if index else x, return_dict=False)[0]
            x = self.scheduler.step(u, t, x, return_dict=False)[0]
            return torch.cat([x, self.audio]) if index == STEPS - 1 else x

    return all_followed(SoundFirst, STEPS)


@situation(2, "two experts (Wan 2.2)")
def experts() -> str:
    from tests.pipelines.table import built

    setup = built("Wan 2.2")
    schedule = adaptcache.calibrate(setup.pipe, setup.prompts[:2], steps=STEPS, budget=0.5, call=setup.call)
    run = {"row": setup.prompts[0], "call": dict(setup.call)}
    return compared(setup.pipe, schedule, lambda: made(setup.pipe, **run), total=setup.branches * STEPS)


# 3. Identity


def with_lora() -> Any:
    pipe = flux()
    layers = ["to_q", "to_k", "to_v", "ff.net.0.proj", "ff.net.2"]
    config = LoraConfig(r=4, lora_alpha=256, init_lora_weights=False, target_modules=layers)
    pipe.transformer.add_adapter(config, adapter_name="style")
    return pipe


def identity(pipe: Any, change: Callable[[Any], Any], **how: Any) -> str:
    """Changes a pipeline between calibration and attach: seen by the cache and by evidence?"""
    arguments = how or {"rows": ROWS, "call": SD}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        schedule = fitted(pipe, store=Cache(folder), **arguments)
        change(pipe)
        with forwards(pipe) as calls:
            fitted(pipe, store=Cache(folder), **arguments)
        planned = len(calls)
    with forwards(pipe) as calls:
        fitted(pipe, **arguments)
    if planned < len(calls):
        found.append("a stale profile")
    with adaptcache.attach(pipe, schedule) as handle:
        made(pipe, row=arguments["rows"][0], call=arguments["call"])
        if handle.report().evidence == "calibrated":
            found.append('"calibrated"')
    return ", ".join(found) or "right"


def scale(part: Any) -> None:
    with torch.no_grad():
        next(part.parameters()).mul_(1.5)


FLUX = {"rows": flux_prompts(), "call": SIZE}


@situation(3, "a LoRA at another strength")
def strength() -> str:
    return identity(with_lora(), lambda pipe: pipe.transformer.set_adapters(["style"], [0.05]), **FLUX)


@situation(3, "a LoRA switched off")
def lora_off() -> str:
    return identity(with_lora(), lambda pipe: pipe.transformer.disable_lora(), **FLUX)


@situation(3, "the decoder's scaling factor")
def scaling_factor() -> str:
    return identity(stable(), lambda pipe: pipe.vae.register_to_config(scaling_factor=0.2))


@situation(3, "another decoder")
def decoder() -> str:
    return identity(stable(), lambda pipe: scale(pipe.vae.decoder))


@situation(3, "a decoder that works in tiles")
def tiled_decoder() -> str:
    return identity(stable(), lambda pipe: pipe.vae.enable_tiling())


@situation(3, "FreeU")
def free_u() -> str:
    return identity(stable(), lambda pipe: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4))


class Merged(nn.Linear):
    """As libraries put it in place that merge tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mean(1, keepdim=True).expand_as(x))


@situation(3, "merged tokens (classes of layers replaced)")
def merged_tokens() -> str:
    def merge(pipe: Any) -> None:
        next(layer for layer in pipe.unet.modules() if type(layer) is nn.Linear).__class__ = Merged

    return identity(stable(), merge)


@situation(3, "another precision")
def precision() -> str:
    half = [{name: value.bfloat16() for name, value in row.items()} for row in ROWS]
    pipe, call = stable(), {**SIZE, "guidance_scale": 1.0}
    schedule = fitted(pipe, call=call)
    pipe.to(torch.bfloat16)
    with adaptcache.attach(pipe, schedule) as handle:
        made(pipe, row=half[0], call=call)
        return '"calibrated"' if handle.report().evidence == "calibrated" else "right"


@situation(3, "prompts that differ in an object")
def objects() -> str:
    """Two conditions that print alike are not one: what is kept of the first is not the second's."""

    class Conditioned(Toy):
        def __call__(self, prompt="", condition=None, **more):
            one = condition[0] if isinstance(condition, list) else condition
            self.condition = one.value
            return super().__call__(prompt, **more)

        def stepped(self, index, t, x):
            u = self.out("transformer", t, x, self.condition)
            return self.scheduler.step(u, t, x, return_dict=False)[0]

    class Condition:
        def __init__(self, value: float) -> None:
            self.value = value

        def __repr__(self) -> str:
            return "<Condition>"

    with tempfile.TemporaryDirectory() as folder:
        rules = []
        for value in (0.1, 3.0):
            rows = [{"prompt": "", "condition": Condition(value)}]
            rules.append(fitted(Conditioned(), rows=rows, call={}, store=Cache(folder)).rules)
        alone = fitted(Conditioned(), rows=rows, call={}).rules
    return "right" if rules[1] == alone else "a stale profile"


# 4. Never attached


def sibling_of(pipe: Any, kind: type) -> Any:
    return quiet(kind.from_pipe(pipe))


IMAGE = {"image": noise(7, 1, 3, 16, 16).sigmoid()}


def beside(kind: type, early: bool = False, **more: Any) -> str:
    """Runs a sibling, which nobody attached, beside an attached pipeline."""
    pipe, run = flux(), {"row": flux_prompts()[0], "call": SIZE}
    schedule = fitted(pipe, **FLUX)
    first = sibling_of(pipe, kind)
    full = made(first, **run, **more)
    with adaptcache.attach(pipe, schedule) as handle:
        made(pipe, **run)
        before = handle.report()
        try:
            image = made(first if early else sibling_of(pipe, kind), **run, **more)
        except REFUSALS:
            return "refused what nobody attached"
        found = [] if torch.equal(image, full) else [f"accelerated, off by {100 * far(image, full):.2g} %"]
        if handle.report() != before:
            found.append("in the report of another")
    return ", ".join(found) or "right"


@situation(4, "from_pipe before attach")
def early_sibling() -> str:
    return beside(diffusers.AutoPipelineForText2Image, early=True)


@situation(4, "from_pipe after attach")
def late_sibling() -> str:
    return beside(diffusers.AutoPipelineForText2Image)


@situation(4, "image-to-image by AutoPipeline")
def sibling_from_image() -> str:
    return beside(diffusers.AutoPipelineForImage2Image, **IMAGE, strength=0.6)


@situation(4, "inpainting by AutoPipeline")
def sibling_inpaints() -> str:
    mask = {"mask_image": (noise(6, 1, 1, 16, 16) > 0).float()}
    return beside(diffusers.AutoPipelineForInpainting, **IMAGE, **mask, strength=1.0)


@situation(4, "a sibling with other steps")
def sibling_of_other_steps() -> str:
    return beside(diffusers.AutoPipelineForText2Image, num_inference_steps=5)


@situation(4, "a loop by hand")
def by_hand() -> str:
    pipe = stable(Plain)
    schedule = fitted(pipe, call={})

    @torch.no_grad()
    def loop() -> Tensor:
        x = noise(1, 1, 4, 8, 8)
        pipe.scheduler.set_timesteps(STEPS)
        for t in pipe.scheduler.timesteps:
            u = pipe.unet(x, t, encoder_hidden_states=ROWS[0]["prompt_embeds"], return_dict=False)[0]
            x = pipe.scheduler.step(u, t, x, return_dict=False)[0]
        return x

    full = loop()
    with adaptcache.attach(pipe, schedule):
        return "right" if torch.equal(loop(), full) else "accelerated"


@situation(4, "a sibling that runs in a callback of the attached one")
def in_a_callback() -> str:
    pipe, run = flux(), {"row": flux_prompts()[0], "call": SIZE}
    schedule = fitted(pipe, **FLUX)
    other = quiet(diffusers.FluxPipeline(**pipe.components | {"scheduler": copy.deepcopy(pipe.scheduler)}))
    full, seen = made(other, **run), []

    def preview(_pipe: Any, step: int, t: Any, tensors: Any) -> Any:
        if step == 3:
            seen.append(made(other, **run))
        return tensors

    with adaptcache.attach(pipe, schedule) as handle:
        alone = made(pipe, **run)
        with_preview = made(pipe, **run, callback_on_step_end=preview)
        report = handle.report()
    good = torch.equal(seen[0], full) and torch.equal(alone, with_preview)
    return "right" if good and report.made + report.skipped == STEPS else "loops mixed up"


# 5. What was measured


def claimed(pipe: Any, change: Callable[[], Any], how: Any = None, **more: Any) -> str:
    """Changes something after attach, or calls with other arguments: what does the report say?"""
    how = how or {"rows": ROWS, "call": SD}
    schedule = fitted(pipe, **how)
    with adaptcache.attach(pipe, schedule) as handle:
        made(pipe, row=how["rows"][0], call=how["call"])
        change()
        try:
            made(pipe, row=how["rows"][0], call=how["call"] | more)
        except REFUSALS:
            return "refused"
        return '"calibrated"' if handle.report().evidence == "calibrated" else "right"


def nothing() -> None:
    pass


@situation(5, "weights loaded after attach")
def loaded_weights() -> str:
    pipe = flux()
    torch.manual_seed(7)
    other = diffusers.FluxTransformer2DModel.from_config(pipe.transformer.config).state_dict()
    return claimed(pipe, lambda: pipe.transformer.load_state_dict(other), FLUX)


@situation(5, "a LoRA added after attach")
def added_lora() -> str:
    pipe = flux()
    config = LoraConfig(r=4, lora_alpha=64, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v"])
    return claimed(pipe, lambda: pipe.transformer.add_adapter(config, adapter_name="style"), FLUX)


@situation(5, "the denoiser replaced after attach")
def replaced_denoiser() -> str:
    pipe = flux()
    torch.manual_seed(7)
    other = diffusers.FluxTransformer2DModel.from_config(pipe.transformer.config).eval()
    return claimed(pipe, lambda: setattr(pipe, "transformer", other), FLUX)


@situation(5, "the decoder changed after attach")
def changed_decoder() -> str:
    pipe = stable()
    return claimed(pipe, lambda: scale(pipe.vae.decoder))


@situation(5, "the scheduler reconfigured after attach")
def changed_scheduler() -> str:
    pipe = stable()
    return claimed(pipe, lambda: pipe.scheduler.register_to_config(clip_sample=True))


@situation(5, "the scheduler replaced after attach")
def replaced_scheduler() -> str:
    pipe = stable()
    return claimed(pipe, lambda: setattr(pipe, "scheduler", diffusers.DPMSolverMultistepScheduler(**BETAS)))


@situation(5, "a sampler made stochastic (eta=1)")
def stochastic() -> str:
    return claimed(stable(), nothing, eta=1.0)


@situation(5, "guidance rescaled")
def rescaled() -> str:
    return claimed(stable(), nothing, guidance_rescale=0.7)


@situation(5, "guidance switched on by a negative prompt")
def negative_prompt() -> str:
    negative = {"negative_prompt_embeds": noise(9, 1, 5, 16), "negative_pooled_prompt_embeds": noise(8, 1, 16)}
    return claimed(flux(), nothing, {"rows": flux_prompts(), "call": SIZE | {"true_cfg_scale": 2.0}}, **negative)


@situation(5, "guidance of another name, beyond twice the calibrated one")
def far_guidance() -> str:
    return claimed(
        flux(), nothing, {"rows": flux_prompts(), "call": SIZE | {"guidance_scale": 2.0}}, guidance_scale=9.0
    )


@situation(5, "an argument of a subclass that names none")
def nameless() -> str:
    class Mine(diffusers.StableDiffusionPipeline):
        def __call__(self, *args, **kwargs):
            return super().__call__(*args, **kwargs)

    return claimed(stable(Mine), nothing, guidance_scale=9.0)


# 6. Several loops in a call


class Segments(diffusers.FluxPipeline):
    """Makes its image again and again, each loop from the noise that is left in the generator."""

    def __call__(self, segments=3, resets=False, draft=0, num_inference_steps=STEPS, **kwargs):
        kwargs |= SIZE
        if draft:
            super().__call__(num_inference_steps=draft, **kwargs)
        for _ in range(segments):
            result = super().__call__(num_inference_steps=num_inference_steps, **kwargs)
        if resets:
            self.scheduler.set_timesteps(num_inference_steps, mu=0.5)
        return result


def in_segments(total: int, **more: Any) -> str:
    pipe = flux(Segments)
    schedule = fitted(flux(), **FLUX)
    run = {"row": flux_prompts()[0], "call": SIZE}
    measured = more.get("segments") == 1 and not more.get("draft")
    return compared(pipe, schedule, lambda: made(pipe, **run, **more), measured, total)


@situation(6, "a clip in three segments")
def three() -> str:
    return in_segments(3 * STEPS)


@situation(6, "steps set again after the last loop")
def resets() -> str:
    return in_segments(STEPS, segments=1, resets=True)


@situation(6, "a draft in fewer steps, then the image")
def draft() -> str:
    return in_segments(3 + STEPS, segments=1, draft=3)


@situation(6, "thirty short loops (autoregressive)")
def autoregressive() -> str:
    return in_segments(30 * STEPS, segments=30)


def calibrated_loops(pipe: Any, rows: Any, call: Any, loops: int) -> str:
    """Calibrates a pipeline of several loops: all of them, or refused by the first call."""
    with forwards(pipe) as calls:
        try:
            schedule = fitted(pipe, rows=rows, call=call, held_out=rows[2:])
        except (ValueError, AttachError) as error:
            late = len(calls) > loops * STEPS
            return "refused" if "loop" in str(error) and not late else f"fails late: {str(error)[:40]}"
    return (
        "right" if schedule.evidence.calls[1] == loops * STEPS else f"evidence of {schedule.evidence.calls[1]} steps"
    )


@situation(6, "segments, calibrated")
def segments_calibrated() -> str:
    return calibrated_loops(flux(Segments), flux_prompts(), {"segments": 3}, 3)


def free_init() -> Any:
    torch.manual_seed(0)
    parts = sd_parts()
    adapter = diffusers.MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_norm_num_groups=2, motion_num_attention_heads=2
    )
    pipe = quiet(
        diffusers.AnimateDiffPipeline(
            vae=parts["vae"], text_encoder=None, tokenizer=None, unet=parts["unet"], motion_adapter=adapter,
            scheduler=diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False),
        )
    )  # fmt: skip
    return pipe


CLIP = SD | {"num_frames": 4}


@situation(6, "FreeInit (AnimateDiff), calibrated")
def free_init_calibrated() -> str:
    pipe = free_init()
    pipe.enable_free_init(num_iters=3, use_fast_sampling=False, method="butterworth")
    return calibrated_loops(pipe, ROWS, CLIP, 3)


@situation(6, "FreeInit (AnimateDiff), by the schedule of one loop")
def free_init_attached() -> str:
    pipe = free_init()
    schedule = fitted(pipe, call=CLIP)
    pipe.enable_free_init(num_iters=3, use_fast_sampling=False, method="butterworth")
    return compared(pipe, schedule, lambda: made(pipe, call=CLIP), measured=False, total=3 * STEPS)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", type=int, choices=SITUATIONS)
    only = parser.parse_args().kind
    warnings.simplefilter("ignore")
    print("| kind | situation | result |\n|---|---|---|")
    for kind, known in SITUATIONS.items():
        for name, function in known.items() if only in (None, kind) else ():
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                try:
                    result = function()
                except Exception as error:
                    result = f"fails: {type(error).__name__}: {' '.join(str(error).split())[:80]}"
            print(f"| {kind} | {name} | {result} |", flush=True)


if __name__ == "__main__":
    main()
