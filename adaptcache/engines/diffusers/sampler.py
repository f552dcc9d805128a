"""Another sampler in a pipeline's stead, for the same model and the same noise levels."""

import copy
import difflib
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...errors import ScheduleError
from ...schedule.format import EULER

EDM = {"EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"}


def sampler(kind: str, before: Any, **settings: Any) -> Any:
    """Returns a sampler of another kind for the model and the noise levels of a pipeline's scheduler.

    Arguments:
        kind: The name of a scheduler class of diffusers.
        before: The scheduler the pipeline has.
        settings: Fields of the new one's configuration: solver_order, algorithm_type, ...

    Raises:
        LookupError: diffusers has no such scheduler.
        ValueError: It cannot run such a model: a flow-matching one, or one that is told sigmas as EDM's are.
    """
    import diffusers

    base: Any = getattr(diffusers, kind, None)
    if base is None or not hasattr(base, "set_timesteps"):
        known = {other.__name__ for other in getattr(before, "compatibles", [])} | {type(before).__name__}
        known |= {EULER, *flow_samplers()} if is_flow(before) else set()
        near = difflib.get_close_matches(kind, known, 1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise LookupError(
            f"diffusers has no scheduler {kind!r}{meant}; for this pipeline there are {', '.join(sorted(known))}"
        )
    own = type(before).__name__
    if "sigma_data" in before.config and kind != own and not {kind, own} <= EDM:
        raise ValueError(f"{kind} cannot run a model of {own}: it tells the denoiser other numbers for the same noise")
    if not is_flow(before):
        return base.from_config(before.config, **settings)
    if kind == EULER:
        shift, dynamic = shift_of(before)
        return base.from_config({**before.config, "shift": shift}, use_dynamic_shifting=dynamic, **settings)
    return flow_sampler(base, before, settings)


def flow_sampler(base: Any, before: Any, settings: dict[str, Any]) -> Any:
    """Returns a sampler with the noise levels of a flow-matching one."""
    shift, dynamic = shift_of(before)
    if base.__name__ not in (known := flow_samplers()):
        raise ValueError(
            f"{base.__name__} cannot run a flow-matching model: it has no use_flow_sigmas; {', '.join(known)} have"
        )

    class Shifted(base):  # type: ignore[misc]
        @functools.wraps(base.set_timesteps)  # pipelines ask for the names of its arguments
        def set_timesteps(self, *args: Any, mu: float | None = None, **kwargs: Any) -> None:
            # Flux always hands over mu; these samplers want none where the shift is fixed
            super().set_timesteps(*args, **({"mu": mu} if dynamic else {}), **kwargs)

    Shifted.__name__ = base.__name__
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    return Shifted(**flow, flow_shift=shift, use_dynamic_shifting=dynamic, **settings)


def flow_samplers() -> list[str]:
    """Returns the names of the schedulers of diffusers that can run a flow-matching model, but its own."""
    import diffusers

    kinds = {name: getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Scheduler")}
    return sorted(name for name, kind in kinds.items() if "use_flow_sigmas" in inspect.signature(kind).parameters)


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler belongs to a flow-matching model."""
    return type(scheduler).__name__ == EULER or bool(scheduler.config.get("use_flow_sigmas"))


def set_levels(scheduler: Any, levels: Sequence[float]) -> None:
    """Lets a flow-matching scheduler step through noise levels in (0, 1], and then to its last one.

    Raises:
        ScheduleError: It is another one, or its steps add noise or go the other way.
    """
    config = scheduler.config
    if not is_flow(scheduler) or config.get("stochastic_sampling") or config.get("invert_sigmas"):
        raise ScheduleError(
            f"{type(scheduler).__name__} cannot step through noise levels of a schedule's own: that takes a "
            f"flow-matching sampler that adds no noise, such as {EULER}; calibrate on the grid (times='grid')"
        )
    own = torch.tensor(tuple(levels), dtype=torch.float32)
    scheduler.sigmas = torch.cat([own.to(scheduler.sigmas), scheduler.sigmas[-1:]])
    scheduler.timesteps = (own * config.num_train_timesteps).to(scheduler.timesteps.device)
    scheduler.num_inference_steps = len(own)


def shift_of(scheduler: Any) -> tuple[float, bool]:
    """Returns the shift of a flow-matching scheduler, and whether it depends on the size instead."""
    config = scheduler.config
    return float(config.get("shift", config.get("flow_shift", 1.0))), bool(config.get("use_dynamic_shifting"))


def with_sampler(pipe: Any, kind: str | None) -> Any:
    """Gives a pipeline a sampler of another kind, or leaves it as it is; returns the pipeline."""
    if kind and kind != type(pipe.scheduler).__name__:
        pipe.scheduler = sampler(kind, pipe.scheduler)
    return pipe


def refined(scheduler: Any, factor: int) -> Any:
    """Returns a scheduler that takes `factor` steps for each step it is asked for, closer to the exact solution.

    The wanted steps stay on the grid: each is cut into parts of equal length in sigma.

    Raises:
        ValueError: The scheduler's grid is not its list of sigmas, or `factor` is below 1.
    """
    if factor < 1:
        raise ValueError(f"a teacher needs at least as many steps as the schedule, got a factor of {factor}")
    if factor == 1:
        return scheduler
    name = type(scheduler).__name__
    if name != EULER or scheduler.config.stochastic_sampling:
        raise ValueError(f"a finer teacher needs a deterministic {EULER}, this is a {name}")

    def refine(finer: Any) -> None:
        left, right = finer.sigmas[:-1, None], finer.sigmas[1:, None]
        share = torch.arange(factor, device=finer.sigmas.device) / factor
        inner = (left + (right - left) * share).flatten()
        finer.sigmas = torch.cat([inner, finer.sigmas[-1:]])
        finer.timesteps = (inner * finer.config.num_train_timesteps).to(finer.timesteps.device)

    return with_grid(copy.deepcopy(scheduler), refine)


def with_grid(scheduler: Any, change: Callable[[Any], None]) -> Any:
    """Makes a scheduler change its grid whenever that is set, and returns it."""
    base = type(scheduler)

    class Changed(base):  # type: ignore[misc, valid-type]
        @functools.wraps(base.set_timesteps)  # pipelines ask for the names of its arguments
        def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
            super().set_timesteps(*args, **kwargs)
            change(self)

    Changed.__name__ = base.__name__
    scheduler.__class__ = Changed
    return scheduler
