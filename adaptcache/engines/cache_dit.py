"""cache-dit: a calibrator with a table of weights for every skipped step, and the mask that goes with it.

cache-dit forecasts what a stack of blocks adds to what enters it. These residuals change from step to step much as the
outputs do, so the weights are those that the schedule's kernel gives for outputs alone; weights that were matched to
the end of a run, and those of latents, have no meaning there. Looked at with cache-dit 1.5.3, whose factory of
calibrators knows its own three kinds: it is taught a fourth.
"""

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import ScheduleError
from ..files import write_atomically
from ..fitting.kernel import fit_open_loop_table
from ..forecasts.base import Known, Weights, weighted_sum
from ..schedule.schedule import Schedule
from .formats.cache_dit import dump_mask, mask_config
from .formats.mask import ReusePlan

KIND, HISTORY = "adaptcache", 2  # more residuals were worse: errors of the weights add up

Table = tuple[tuple[float, ...], ...]


def configs(schedule: Schedule, gear: int = 0, history: int = HISTORY) -> dict[str, Any]:
    """Returns what `cache_dit.enable_cache(pipe, **configs(schedule))` takes.

    Arguments:
        schedule: A schedule with a plan and a kernel.
        gear: Which plan.
        history: How many computed residuals a forecast weighs at most.

    Raises:
        ScheduleError: It has no plan, or no kernel to fit weights to.
    """
    import cache_dit

    plan, table = weights_of(schedule, gear, history)
    mask = mask_config(ReusePlan.of(plan, len(schedule.grid.times)))
    config = _kinds()(table=table)
    return {"cache_config": cache_dit.DBCacheConfig(**mask), "calibrator_config": config}


def save_mask(schedule: Schedule, path: str | Path, gear: int = 0) -> Path:
    """Writes the mask of a plan as cache-dit's YAML; weights are no part of it, so that alone it reuses."""
    return write_atomically(path, dump_mask(ReusePlan.of(schedule.steps(gear), len(schedule.grid.times))).encode())


def weights_of(schedule: Schedule, gear: int = 0, history: int = HISTORY) -> tuple[list[int], Table]:
    """Returns the computed steps, and by skipped step the weights of the last computed residuals, newest first."""
    plan = schedule.steps(gear)
    if schedule.kernel is None:
        raise ScheduleError(f"{schedule.name} carries no kernel, to which weights of residuals are fitted: calibrate")
    gram, _ = schedule.kernel.on_grid(schedule.grid.times)
    return plan, fit_open_loop_table(gram, plan, history)


class TableCalibrator:
    """Forecasts by a table, with the interface of `cache_dit`'s `CalibratorBase`.

    The table has, by step, the weights of the last computed values, newest first; none where the step is computed.
    """

    def __init__(self, table: Table) -> None:
        self.table, self.depth = table, max(map(len, table), default=0)
        self.reset_cache()

    def reset_cache(self, *args: Any, **kwargs: Any) -> None:
        """A run begins."""
        self.step, self.streams = -1, dict[str, list[Tensor]]()

    def mark_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """A step begins, computed or not."""
        self.step += 1

    def update(self, value: Tensor, name: str = "default") -> None:
        """Keeps what was computed."""
        kept = self.streams.setdefault(name, [])
        kept.insert(0, value.clone())
        del kept[self.depth :]

    def approximate(self, name: str = "default") -> Tensor:
        """Returns the forecast at this step."""
        known, row = self.streams[name], self.table[self.step]
        if not row:
            raise ScheduleError(f"step {self.step} is computed by the plan, and the mask in use skips it")
        return weighted_sum(Weights(row), Known(known, known[0], known[0]))


def _kinds() -> type:
    """Teaches the factory of calibrators our kind, once; returns the class of its configuration."""
    from cache_dit.caching.cache_contexts import calibrators

    if found := getattr(calibrators.Calibrator, "adaptcache", None):
        return found  # type: ignore[no-any-return]

    @dataclasses.dataclass
    class TableCalibratorConfig(calibrators.CalibratorConfig):  # type: ignore[misc]
        """Asks for a `TableCalibrator`, of hidden states and of the text's."""

        enable_calibrator: bool = True
        enable_encoder_calibrator: bool = True
        calibrator_type: str = KIND
        table: Table = ()

        def strify(self, **kwargs: Any) -> str:
            return "AdaptcacheTable"

        def to_kwargs(self) -> dict[str, Any]:
            return {"table": self.table}

    make = calibrators.Calibrator.__new__

    def __new__(cls: type, calibrator_config: Any) -> Any:
        if calibrator_config.calibrator_type == KIND:
            return TableCalibrator(**calibrator_config.to_kwargs())
        return make(cls, calibrator_config)

    calibrators.Calibrator.__new__ = __new__
    calibrators.Calibrator.adaptcache = TableCalibratorConfig
    return TableCalibratorConfig
