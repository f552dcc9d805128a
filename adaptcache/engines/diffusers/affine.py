"""Reads a scheduler of diffusers as an affine sampler, by stepping a copy of it with unit vectors."""

import copy
import warnings
from typing import Any

import numpy as np
import torch

from ...errors import ScheduleError
from ...fitting.affine import AffineSampler, data_weights, trace_steps, with_end
from ...fitting.kernel import Array
from ...runs import fork_rng
from ...schedule.instant import InstantRequest
from .compatibility import guidance_of

PREDICTIONS = {"epsilon": "noise", "v_prediction": "v", "sample": "data", "flow_prediction": "velocity"}


def read_run(gate: Any, speed: float) -> InstantRequest:
    """Returns what an instant schedule is made for, when a run starts; `ScheduleError` where its steps add noise."""
    loop, arguments = gate.loop, gate.arguments
    scheduler, begin = loop.lead.scheduler, loop.lead.begin
    if eta := arguments.get("eta"):
        raise ScheduleError(f"eta={eta!r} adds noise, which no forecast can know: take eta=0, or calibrate")
    # EDM counts data in units of sigma_data.
    variance = float(scheduler.config.get("sigma_data") or 1.0) ** 2
    with gate.aside():
        sampler = read_sampler(scheduler, begin)
    guidance = guidance_of(gate.pipe, arguments)
    return InstantRequest(loop.times, speed, sampler, guidance, variance, type(scheduler).__name__)


def read_sampler(scheduler: Any, begin: int = 0) -> AffineSampler:
    """Returns what a scheduler does on the grid that is set.

    Arguments:
        scheduler: The scheduler, after `set_timesteps` and before its first step; it is not changed.
        begin: The number of the first timestep of the run (image-to-image).

    Raises:
        ScheduleError: It adds noise, or its steps are not those of a sampler from noise to data.
    """
    name, count = type(scheduler).__name__, len(scheduler.timesteps) - begin

    def fresh() -> Any:
        one = copy.deepcopy(scheduler)
        # To the CPU, as some devices have no double precision.
        vars(one).update({name: value.cpu() for name, value in vars(one).items() if isinstance(value, torch.Tensor)})
        one.is_scale_input_called = True
        for setting in ("clip_sample", "thresholding", "sample_clipping"):  # rarely binds, and is not linear
            if one.config.get(setting):
                one.register_to_config(**{setting: False})
        return one

    def walk(scale: float) -> Array:
        one = fresh()
        times = one.timesteps[begin:]

        def step(i: int, latents: Array, output: Array) -> Array:
            x, u = (torch.from_numpy(scale * v)[None, None, None] for v in (latents, output))
            return np.asarray(one.step(u, times[i], x, return_dict=False)[0].double().flatten().numpy())

        return trace_steps(step, count)

    try:
        with fork_rng(), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            noisy = bool(np.abs(walk(0.0)).max() > 0)
            maps = walk(1.0)
            alphas, sigmas = noise_levels(fresh(), begin)
    except ScheduleError:
        raise
    except Exception as error:
        raise ScheduleError(
            f"{name} cannot be read for an instant schedule ({type(error).__name__}: {error}); calibrate instead"
        ) from error
    if noisy:
        raise ScheduleError(
            f"{name} adds noise at its steps, which no forecast can know: instant schedules need a deterministic "
            "sampler; calibrate, which keeps the latents that tell the noise, or take another scheduler"
        )
    try:
        sampler = with_end(alphas, sigmas, output_weights(scheduler, alphas, sigmas), maps)
        sampler.check()
    except ValueError as error:
        raise ScheduleError(f"no instant schedule for {name}: {error}; calibrate instead") from None
    return sampler


def noise_levels(scheduler: Any, begin: int) -> tuple[Array, Array]:
    """Returns what data and noise are multiplied with at each timestep, as the scheduler itself adds noise."""
    one, none, found = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64), []
    for time in scheduler.timesteps[begin:]:
        scheduler._begin_index = scheduler._step_index = None
        if hasattr(scheduler, "scale_noise"):
            pair = scheduler.scale_noise(one, time[None], none), scheduler.scale_noise(none, time[None], one)
        else:
            pair = scheduler.add_noise(one, none, time[None]), scheduler.add_noise(none, one, time[None])
        found.append([float(value) for value in pair])
    levels = np.array(found)
    return levels[:, 0], levels[:, 1]


def output_weights(scheduler: Any, alphas: Array, sigmas: Array) -> Array:
    """Returns the weights of latents and output in the data prediction, with shape (N, 2)."""
    config = scheduler.config
    kind = config.get("prediction_type") or "flow_prediction"
    if (spread := config.get("sigma_data")) is not None and kind in ("epsilon", "v_prediction"):  # EDM
        whole = np.hypot(sigmas, spread)
        sign = 1.0 if kind == "epsilon" else -1.0
        return np.stack([spread**2 / whole**2, sign * sigmas * spread / whole], axis=1)
    if kind not in PREDICTIONS:
        raise ValueError(f"its prediction {kind!r} is none of {', '.join(PREDICTIONS)}")
    if kind == "flow_prediction" and len(sigmas) > 1 and sigmas[0] < sigmas[-1]:
        raise ValueError("its noise levels rise")
    return data_weights(PREDICTIONS[kind], alphas, sigmas)
