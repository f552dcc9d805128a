"""Watches the sampling runs of a MODEL of ComfyUI: two wrappers, between which a hook decides at each step.

`SAMPLER_SAMPLE` gives the grid, the sampler and the end; `PREDICT_NOISE` is the guided output of a step, after CFG and
what follows it. Where the hook does not compute, the wrapper returns without the model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import AttachError
from ...hooks import SchedulerStep, StepHook
from ...step import Step
from .grid import Output, StandIn, input_scale, levels_of, readers_of, times_of

KEY = "adaptcache"  # of our wrappers on a MODEL
NEAR = 1e-4  # relative: noise levels this close are one


@dataclass(frozen=True)
class Run:
    """What `SAMPLER_SAMPLE` is given: a sampling run that is about to begin."""

    guider: Any
    sampler: Any
    sigmas: Tensor  # with shape (N + 1,)
    extra: dict[str, Any]
    noise: Tensor
    latents: Tensor | None
    mask: Tensor | None

    @property
    def sampling(self) -> Any:
        """The `model_sampling` of the model, with what nodes patched into it (shift)."""
        return self.guider.inner_model.model_sampling


@dataclass
class ComfyStep(SchedulerStep):
    """A step of a sampler."""

    loop: Loop
    raw: Tensor  # the latents as the sampler keeps them
    level: float

    def preview(self, u: Tensor) -> Tensor:
        outputs = [*self.loop.outputs, Output(self.raw.to(u.dtype) - self.level * u, self.loop.apart)]
        run, index = self.loop.run, self.step.index
        stand_in = StandIn(run.guider, outputs, index + 1)
        landed = stand_in.follow(run.sampler, self.loop.sigmas, run.extra, run.noise, run.latents, run.mask)
        return self.loop.scaled(landed, index + 1).to(u.dtype)


class Loop:
    """One sampling run, followed call by call, at the noise levels of its calls.

    The hook may know latents `plain`, as x0 + sigma * noise; outputs that are kept are for previews.
    """

    def __init__(self, hook: StepHook, run: Run, levels: list[float], plain: bool, keep: bool) -> None:
        self.hook, self.run, self.levels, self.plain, self.keep = hook, run, levels, plain, keep
        self.sigmas = run.sigmas.clone()  # some samplers write to theirs
        self.times = times_of(run.sampling, levels)
        self.outputs: list[Output] = []  # as the sampler was given them
        self.apart: Tensor | None = None  # of the last computed step: the unconditional output less the guided one
        self.made: list[bool] = []
        self.lost = not levels  # whether the sampler goes another way than in its rehearsal
        self.past: tuple[int, ...] = ()
        self.step: ComfyStep | None = None

    def scaled(self, x: Tensor, index: int) -> Tensor:
        """Returns latents before step `index` as the hook knows them."""
        ends = index >= len(self.levels)
        factor = 1.0 if ends else input_scale(self.run.sampling, self.levels[index], self.plain)
        return x if factor == 1 else x * factor

    def predict(
        self, compute: Callable[[dict[str, Any]], Tensor], x: Tensor, timestep: Tensor, options: dict[str, Any]
    ) -> Tensor:
        """Returns the denoised latents of a step, from the model (called by `compute`) or from the hook.

        Latents have shape (B, *), their noise level `timestep` (B,).
        """
        index, level = len(self.made), float(timestep.reshape(-1)[0])
        if self.lost or index >= len(self.levels) or abs(level - self.levels[index]) > NEAR * self.levels[index]:
            return self._lost(compute(options), index, level)
        known, readers = self.scaled(x, index), readers_of(self.run.guider, options)
        if self.step is not None:
            self.hook.on_step_end(self.step, known)
        made = self.hook.should_compute(Step(index, self.times if index else (), self.past, x=known)) or index == 0
        denoised = compute(self._reading(options) if readers else options) if made else x
        if index == 0:
            self.hook.on_run_start(self.times)
        u = (x - denoised) / level if made else torch.zeros_like(x)
        self.step = ComfyStep(Step(index, self.times, self.past, x=known), 0, 0, made, known, u, self, x, level)
        self.step.branches = 2.0 if readers or getattr(self.run.guider, "cfg", 1.0) != 1 else 1.0
        if (used := self.hook.model_output(self.step)) is not u:
            output = Output(x - level * used.to(x.dtype), self.apart)
            denoised = output.give(readers, x, timestep, options)
        else:
            output = Output(denoised, self.apart)
        self.made.append(made)
        if made:
            self.past = (index, *self.past)
        if self.keep:
            self.outputs.append(output)
        return denoised

    def _lost(self, denoised: Tensor, index: int, level: float) -> Tensor:
        if not self.lost:
            warnings.warn(
                f"the sampler asks for noise level {level:.4g} at call {index}, not as in its rehearsal: all is "
                "computed from here on",
                stacklevel=2,
            )
        self.lost = True
        self.made.append(True)
        return denoised

    def _reading(self, options: dict[str, Any]) -> dict[str, Any]:
        """Returns model options with which we read what the sampler reads: the unconditional output."""

        def read(given: dict[str, Any]) -> Tensor:
            self.apart = given["uncond_denoised"] - given["denoised"]
            return given["denoised"]  # type: ignore[no-any-return]

        return {**options, "sampler_post_cfg_function": [*options["sampler_post_cfg_function"], read]}

    def end(self, samples: Tensor) -> None:
        """The sampler has returned `samples`."""
        if self.step is not None and not self.lost:
            self.hook.on_step_end(self.step, self.scaled(samples, len(self.made)))


class Gate:
    """Watches sampling runs for one hook, which may know latents `plain`, as x0 + sigma * noise.

    `before` each run it is called with what is sampled, and may raise, to refuse it. Outputs that are kept are for
    previews. `whole` refuses samplers that cannot be followed, where full runs would be made.
    """

    def __init__(
        self, hook: StepHook, before: Callable[[Run, tuple[float, ...]], None] = lambda run, times: None, *,
        plain: bool = False, keep: bool = False, whole: bool = False,
    ) -> None:  # fmt: skip
        self.hook, self.before, self.plain, self.keep, self.whole = hook, before, plain, keep, whole
        self.loops: dict[int, Loop] = {}  # of the guiders that are at work
        self.made: tuple[tuple[bool, ...], ...] = ()  # of the last run, by step
        self.why_full = ""  # why the last run was a full one

    def sample(
        self, executor: Any, guider: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, noise: Tensor,
        *more: Any, **named: Any,
    ) -> Any:  # fmt: skip
        """Wraps a run of a sampler (`SAMPLER_SAMPLE`)."""
        latents, mask, quiet = optional(*more, **named)
        arguments = (guider, sigmas, extra_args, callback, noise, latents, mask, quiet)
        run = Run(guider, executor.class_obj, sigmas, extra_args, noise, latents, mask)
        self.made, self.why_full = (), ""
        try:
            levels = levels_of(run.sampler, guider, sigmas, extra_args, noise)
        except AttachError as error:
            if self.whole:
                raise
            self.why_full = f"{error}: all steps are computed"
            warnings.warn(self.why_full, stacklevel=2)
            loop = Loop(StepHook(), run, [], self.plain, False)
        else:
            loop = Loop(self.hook, run, levels, self.plain, self.keep)
            self.before(run, loop.times)
            loop.hook, loop.plain = self.hook, self.plain  # `before` may have set others
        self.loops[id(guider)] = loop
        try:
            samples = executor(*arguments)
            loop.end(samples)
        finally:
            del self.loops[id(guider)]
            self.made = tuple((made,) for made in loop.made)
            loop.hook.on_run_end()
        return samples

    def predict(
        self, executor: Any, x: Tensor, timestep: Tensor, model_options: Any = None, seed: int | None = None
    ) -> Any:
        """Wraps the guided output of a step (`PREDICT_NOISE`)."""
        guider, options = executor.class_obj, model_options or {}
        if (loop := self.loops.get(id(guider))) is None:
            return executor(x, timestep, options, seed)

        def compute(options: dict[str, Any]) -> Any:
            # Runs in lockstep share the model, which knows one patcher at a time.
            guider.inner_model.current_patcher = guider.model_patcher
            return executor(x, timestep, options, seed)

        return loop.predict(compute, x, timestep, options)


def optional(latent_image: Any = None, denoise_mask: Any = None, disable_pbar: bool = False) -> tuple[Any, Any, bool]:
    """Returns what a sampler may be given besides."""
    return latent_image, denoise_mask, disable_pbar


class Switch:
    """Hands the runs of several guiders of one MODEL to a gate each."""

    def __init__(self) -> None:
        self.gates: dict[int, Gate] = {}

    def sample(self, executor: Any, guider: Any, *more: Any, **options: Any) -> Any:
        return self.gates[id(guider)].sample(executor, guider, *more, **options)

    def predict(self, executor: Any, *more: Any, **options: Any) -> Any:
        return self.gates[id(executor.class_obj)].predict(executor, *more, **options)


def watched(model: Any, watcher: Gate | Switch) -> Any:
    """Returns a clone of a MODEL with the wrappers of a watcher; the MODEL itself is left as it is."""
    clone = model.clone()
    clone.add_wrapper_with_key("sampler_sample", KEY, watcher.sample)
    clone.add_wrapper_with_key("predict_noise", KEY, watcher.predict)
    return clone
