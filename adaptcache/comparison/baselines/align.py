"""Align Your Steps (Sabour et al., 2024), https://arxiv.org/abs/2404.14507: the published time grids."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from ...engines.diffusers.sampler import sampler
from ...fitting.kernel import Array
from .base import Baseline, Case, Params, Ready, with_scheduler
from .samplers import DPM

GRIDS = {
    "StableDiffusion3": "",
    "StableDiffusionXL": "StableDiffusionXLTimesteps",
    "StableDiffusion": "StableDiffusionTimesteps",
    "StableVideoDiffusion": "StableDiffusionVideoSigmas",
}


class AlignYourSteps(Baseline):
    """Fewer steps on the published grids, moved to other step counts along log-linear noise levels."""

    name = "AYS"
    about = "fewer steps on a published grid, the pipeline's own sampler and DPM-Solver++"

    def find_obstacle(self, case: Case) -> str | None:
        if not (grid := grid_of(case.pipe)):
            return f"no grid was published for {type(case.pipe).__name__}"
        if grid.endswith("Timesteps") and not hasattr(case.pipe.scheduler, "alphas_cumprod"):
            return f"the grid is for other noise levels than those of {type(case.pipe.scheduler).__name__}"
        return None

    def propose(self, case: Case) -> list[Params]:
        name, own = grid_of(case.pipe), case.pipe.scheduler
        from diffusers.schedulers import AysSchedules

        grid = AysSchedules[name]
        if name.endswith("Sigmas"):
            levels = np.log(grid[:-1])
            return [
                {"steps": calls, "sigmas": [*np.exp(stretch(levels, calls)).tolist(), 0.0]} for calls in case.calls
            ]
        takes_timesteps = "timesteps" in inspect.signature(own.set_timesteps).parameters
        kinds = dict.fromkeys([DPM.kind, *[type(own).__name__] * takes_timesteps])  # the grids were made for the first
        levels = log_levels(own)
        found = list[Params]()
        for calls in case.calls:
            wanted = stretch(levels[grid], calls)
            steps = np.interp(wanted, levels, np.arange(len(levels))).round().astype(int).tolist()
            found += [{"steps": calls, "timesteps": steps, "sampler": kind} for kind in kinds]
        return found

    @contextmanager
    def apply(self, case: Case, params: Params) -> Iterator[Ready]:
        grid = {name: params[name] for name in ("sigmas", "timesteps") if name in params}
        call = replace(
            case.setup.call, num_inference_steps=params["steps"], pipe_kwargs={**case.setup.call.pipe_kwargs, **grid}
        )
        before = case.pipe.scheduler
        own = sampler(params["sampler"], before, use_karras_sigmas=False) if "sampler" in params else before
        with with_scheduler(case, own):
            yield Ready(call)


def grid_of(pipe: Any) -> str:
    """Returns the name of the grid in diffusers' `AysSchedules`; empty where there is none."""
    kind = type(pipe).__name__
    return next((grid for start, grid in GRIDS.items() if kind.startswith(start)), "")


def log_levels(scheduler: Any) -> Array:
    """Returns the logarithm of the noise over the signal, by timestep, rising."""
    kept = scheduler.alphas_cumprod.double().cpu().numpy()
    return np.asarray(np.log((1 - kept) / kept) / 2)


def stretch(values: Sequence[float] | Array, count: int) -> Array:
    """Returns so many values, linearly interpolated by their numbers."""
    return np.interp(np.linspace(0, 1, count), np.linspace(0, 1, len(values)), values)
