"""Which steps a sampler of ComfyUI takes, from rehearsals without the model: noise levels, times, where it lands."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...errors import AttachError, ScheduleError
from ...fitting.affine import data_weights, with_end
from ...fitting.kernel import Array
from ...runs import fork_rng, in_double
from ...schedule.instant import InstantRequest

if TYPE_CHECKING:
    from .gate import Run

KINDS = {  # the classes that say what a model predicts, and what `u = (x - denoised) / sigma` is in diffusers' words
    "CONST": "flow_prediction",
    "IMG_TO_IMG": "sample",
    "X0": "sample",
    "EDM": "edm",
    "V_PREDICTION": "v_prediction",
    "COSMOS_RFLOW": "cosmos_flow",
    "EPS": "epsilon",
}
LONGEST = 8  # calls a step in a rehearsal, after which a sampler is given up


class Landed(BaseException):
    """Ends a replayed sampler where it asks for one output more than there are."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x


def readers_of(guider: Any, model_options: dict[str, Any] | None) -> list[Any]:
    """Returns the functions with which a sampler reads the unconditional output (those called CFG++ do)."""
    known = len(guider.model_options.get("sampler_post_cfg_function", ()))
    return list((model_options or {}).get("sampler_post_cfg_function", ()))[known:]


@dataclass(frozen=True)
class Output:
    """What a step gives a sampler."""

    denoised: Tensor  # the guided, denoised latents, with shape (B, *)
    apart: Tensor | None = None  # the unconditional ones less these, at the last computed step, where they are read

    def give(self, readers: Sequence[Any], x: Tensor, sigma: Tensor, model_options: Any) -> Tensor:
        """Hands the output to a sampler without the model, as CFG would."""
        denoised = self.denoised
        for read in readers:
            branch = denoised if self.apart is None else denoised + self.apart
            both = {"denoised": denoised, "cond_denoised": denoised, "uncond_denoised": branch}
            denoised = read({**both, "input": x, "sigma": sigma, "model_options": model_options})
        return denoised


class StandIn:
    """Stands in for a guider in a sampler's function, and gives outputs that are known in turn.

    Without outputs it gives zeros, at most `most` times. Samplers read other attributes of the guider.
    """

    def __init__(self, guider: Any, outputs: Sequence[Output] | None, most: int) -> None:
        self._guider, self._outputs, self._most = guider, outputs, most
        self.levels: list[Tensor] = []  # the noise levels it was called with

    def __getattr__(self, name: str) -> Any:
        return getattr(self._guider, name)

    def __call__(self, x: Tensor, timestep: Tensor, model_options: Any = None, seed: int | None = None) -> Tensor:
        if len(self.levels) == self._most:
            raise Landed(x)
        self.levels.append(timestep.reshape(-1)[0])
        output = Output(x * 0) if self._outputs is None else self._outputs[len(self.levels) - 1]
        return output.give(readers_of(self._guider, model_options), x, timestep, model_options)

    def follow(self, sampler: Any, sigmas: Tensor, extra: dict[str, Any], *latents: Tensor | None) -> Tensor:
        """Runs a sampler and returns where it landed. Draws what the real run draws, and leaves generators alone.

        `latents` are the noise, the latents to start from, and the mask. Some samplers write to their noise levels, so
        they get a copy.
        """
        noise, start, *mask = (value if value is None else value.clone() for value in latents)
        with fork_rng():
            try:
                landed: Tensor = sampler.sample(self, sigmas.clone(), dict(extra), None, noise, start, *mask, True)
            except Landed as end:
                return end.x
        return landed


def levels_of(sampler: Any, guider: Any, sigmas: Tensor, extra: dict[str, Any], noise: Tensor) -> list[float]:
    """Returns the noise levels a sampler calls the model at, from a rehearsal on a few numbers without the model.

    The grid `sigmas` has shape (N + 1,), its last level included; the noise has shape (B, *).

    Raises:
        AttachError: It does not call the model once a step, at falling levels.
    """
    steps = len(sigmas) - 1
    few = noise[(slice(1), slice(None), *[slice(1)] * (noise.ndim - 2))]
    stand_in = StandIn(guider, None, LONGEST * steps + 1)
    name = name_of(sampler)
    try:
        stand_in.follow(sampler, sigmas, extra, few, few * 0, None)
    except Exception as error:
        raise AttachError(f"the sampler {name} cannot be rehearsed ({error})") from error
    levels = [float(level) for level in stand_in.levels]
    if len(levels) != steps or any(b >= a for a, b in itertools.pairwise(levels)):
        raise AttachError(f"the sampler {name} calls the model {len(levels)} times in {steps} steps")
    return levels


def name_of(sampler: Any) -> str:
    """Returns the name of a sampler as nodes list it."""
    function = getattr(sampler, "sampler_function", None)
    name = getattr(function, "__name__", "") or type(sampler).__name__
    inpaint = getattr(sampler, "inpaint_options", None) or {}
    if name == "sample_euler" and inpaint.get("random"):
        return "ddim"
    return name.removeprefix("sample_").removesuffix("_function").replace("unipc", "uni_pc")


def prediction_of(sampling: Any) -> str:
    """Returns what a model predicts, in diffusers' words, from its `model_sampling`."""
    names = (kind.__name__ for kind in type(sampling).__mro__)
    return next((KINDS[name] for name in names if name in KINDS), "unknown")


def times_of(sampling: Any, levels: Sequence[float]) -> tuple[float, ...]:
    """Returns the times in [0, 1] of noise levels, the same as those of diffusers' schedulers.

    Flow-matching models have their noise levels as times; models with a table of noise levels (Stable Diffusion) the
    place in it, between entries too; others sigma / (1 + sigma).
    """
    if prediction_of(sampling) == "flow_prediction":
        return tuple(min(level, 1.0) for level in levels)
    table = getattr(sampling, "log_sigmas", None)
    if table is not None and hasattr(sampling, "num_timesteps"):
        known = table.tolist()
        logs = [math.log(max(level, 1e-12)) for level in levels]
        return tuple(float(place) / len(known) for place in np.interp(logs, known, range(len(known))))
    return tuple(level / (1 + level) for level in levels)


def input_scale(sampling: Any, level: float, plain: bool = False) -> float:
    """Returns the factor from the latents of a sampler to those that schedules know.

    Samplers keep the latents of models with added noise (Stable Diffusion) as x0 + sigma * noise; most schedulers of
    diffusers, and schedules, divide that by sqrt(1 + sigma^2). `plain` ones do not, as diffusers' Euler.
    """
    return 1.0 if plain or prediction_of(sampling) == "flow_prediction" else 1 / math.sqrt(1 + level * level)


class Tracer(StandIn):
    """Gives a sampler outputs that are unit vectors, and records where it stands at each of `steps` calls.

    Vectors of `size` 0 show whether the sampler adds noise.
    """

    def __init__(self, guider: Any, steps: int, size: float) -> None:
        super().__init__(guider, None, steps)
        self.size, self.seen = size, list[Tensor]()

    def __call__(self, x: Tensor, timestep: Tensor, model_options: Any = None, seed: int | None = None) -> Tensor:
        self.seen.append(x)
        output = torch.zeros_like(x)
        output[..., len(self.seen)] = self.size
        return x - timestep.reshape(-1)[0].to(x) * output


def walk(run: Run, steps: int, size: float) -> Array:
    """Returns the latents at each call and at the end as sums of the first latents and the outputs; a square."""
    single = torch.zeros(1, run.noise.shape[1], *[1] * (run.noise.ndim - 3), steps + 1, device=run.noise.device)
    double = in_double(single)
    start = double if double.device == single.device else single
    start[..., 0] = size
    tracer = Tracer(run.guider, steps, size)
    end = tracer.follow(run.sampler, run.sigmas, run.extra, start, torch.zeros_like(start), None)
    rows = torch.stack([x[0, 0].reshape(-1) for x in (*tracer.seen, end)]).cpu().double().numpy()
    rows[:, 0] /= rows[0, 0] or 1.0
    return rows


def read_run(run: Run, speed: float) -> InstantRequest:
    """Returns what an instant schedule is made for.

    Raises:
        ScheduleError: The sampler adds noise, or its steps are not those of a sampler from noise to data.
    """
    name = name_of(run.sampler)
    levels = levels_of(run.sampler, run.guider, run.sigmas, run.extra, run.noise)
    try:
        still, rows = (walk(run, len(levels), size) for size in (0.0, 1.0))
    except (RuntimeError, TypeError, ValueError) as error:  # not every sampler runs in double precision
        says = f"no instant schedule for {name}: it cannot be rehearsed ({f'{error} '.splitlines()[0]:.100})"
        raise ScheduleError(f"{says}; calibrate instead") from None
    if np.abs(still).max() > 0:
        raise ScheduleError(
            f"{name} adds noise at its steps, which no forecast can know: an instant schedule needs a deterministic "
            "sampler (euler, dpmpp_2m, uni_pc, ...), or calibrate"
        )
    sigmas = np.array(levels)
    flow = prediction_of(run.sampling) == "flow_prediction"
    alphas = 1 - sigmas if flow else np.ones_like(sigmas)
    data = data_weights("velocity" if flow else "noise", alphas, sigmas)
    try:
        sampler = with_end(alphas, sigmas, data, rows[1:])
        sampler.check()
    except ValueError as error:
        raise ScheduleError(f"no instant schedule for {name}: {error}; calibrate instead") from None
    times, guidance = times_of(run.sampling, levels), max(1.0, float(getattr(run.guider, "cfg", 1.0)))
    return InstantRequest(times, speed, sampler, guidance, scheduler=f"ComfyUI {name}")
