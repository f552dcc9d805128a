"""Reads a sampler of ComfyUI as an affine one, for instant schedules: by one rehearsal on unit vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import ScheduleError
from ...fitting.affine import AffineSampler, data_weights
from ...fitting.kernel import Array
from ...schedule.instant import InstantRequest
from .gate import Run
from .grid import StandIn, levels_of, name_of, prediction_of, times_of

__all__ = ["read_run"]


class Tracer(StandIn):
    """Gives a sampler outputs that are unit vectors, and records where it stands at each call.

    Arguments:
        guider: What it stands in for.
        steps: How many calls there are: N.
        size: Of the vectors; 0 shows whether the sampler adds noise.
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
    start = torch.zeros(1, run.noise.shape[1], *[1] * (run.noise.ndim - 3), steps + 1, dtype=torch.float64)
    start = start.to(run.noise.device)
    start[..., 0] = size
    tracer = Tracer(run.guider, steps, size)
    end = tracer.follow(run.sampler, run.sigmas, run.extra, start, torch.zeros_like(start), None)
    rows = torch.stack([x[0, 0].reshape(-1) for x in (*tracer.seen, end)]).double().cpu().numpy()
    rows[:, 0] /= rows[0, 0] or 1.0
    return rows


def read_run(run: Run, speed: float) -> InstantRequest:
    """Returns what an instant schedule is made for.

    Raises:
        ScheduleError: The sampler adds noise, or its steps are not those of a sampler from noise to data.
    """
    name = name_of(run.sampler)
    levels = levels_of(run.sampler, run.guider, run.sigmas, run.extra, run.noise)
    if np.abs(walk(run, len(levels), 0.0)).max() > 0:
        raise ScheduleError(
            f"{name} adds noise at its steps, which no forecast can know: an instant schedule needs a deterministic "
            "sampler (euler, dpmpp_2m, uni_pc, ...), or calibrate"
        )
    rows = walk(run, len(levels), 1.0)
    sigmas = np.array(levels)
    flow = prediction_of(run.sampling) == "flow_prediction"
    alphas = 1 - sigmas if flow else np.ones_like(sigmas)
    data = data_weights("velocity" if flow else "noise", alphas, sigmas)
    try:
        sampler = AffineSampler(np.append(alphas, 1.0), np.append(sigmas, 0.0), data, rows[1:])
        alpha, sigma = sampler.follow_point()[-1]
        sampler = AffineSampler(np.append(alphas, alpha), np.append(sigmas, max(sigma, 0.0)), data, rows[1:])
        sampler.check()
    except ValueError as error:
        raise ScheduleError(f"no instant schedule for {name}: {error}; calibrate instead") from None
    times, guidance = times_of(run.sampling, levels), max(1.0, float(getattr(run.guider, "cfg", 1.0)))
    return InstantRequest(times, speed, sampler, guidance, scheduler=f"ComfyUI {name}")
