"""What a calibration will cost: passes of the denoiser, disk, memory and minutes, from a few steps that are timed."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median

import torch
from torch import Tensor

from ..hooks import SchedulerStep, StepHook
from ..profiling.measure import PERTURBED
from ..runs import PromptSet, Setup, synchronize
from ..step import Step
from .calibrate import Goal, calls_for
from .refine import REFINING
from .search import EFFORT, SearchCost, searched

HEAP = 64 * 2**20  # bytes that thousands of runs leave in pieces: 30 to 150 MB were measured
PREVIEWS = 6.0  # a step that is matched takes as long as so many that are skipped: it is tried three times, and solved


@dataclass(frozen=True)
class Size:
    """How large a calibration is."""

    steps: int  # of a full run
    calls: int | Sequence[int]  # steps that are computed; of each gear, where there are several
    prompts: int  # to calibrate on
    held_out: int = 0
    effort: float = EFFORT  # full runs of one prompt that the search of the plan may cost
    batch_size: int = PERTURBED  # prompts of a run
    fewer: int | None = None  # steps of the plain runs that evidence compares with; None for as many as calls

    @property
    def few(self) -> int:
        """On how many prompts the sensitivity is measured."""
        return min(PERTURBED, self.batch_size, self.prompts)

    @property
    def search(self) -> SearchCost:
        """Of the search of one plan."""
        assert isinstance(self.calls, int)
        return SearchCost.of(searched(self.effort), self.steps, self.calls, self.prompts)

    def passes(self) -> dict[str, int]:
        """Returns the passes of the denoiser by stage: calls, one for each prompt of a batch; guidance doubles them.

        All are exact but those of a refinement, which ends where it gains nothing.
        """
        n, calls, held_out = self.steps, self.calls, self.held_out
        stages = Counter({
            "full runs": self.prompts * n,
            "sensitivity of each step": self.few * n * (n - 1) // 2,
            "reading the sampler": 1,
            "held-out, full": held_out * n,
        })  # fmt: skip
        if isinstance(calls, int):
            stages.update({
                f"searching {calls} calls": self.search.room * self.search.judges,
                f"matching {calls} calls": self.search.finals * self.prompts * calls,
                REFINING: int((self.effort - searched(self.effort)) * n + 1e-9),
                "held-out, by schedule": held_out * calls,
                "precision floor": min(2, self.batch_size, held_out) * n,
                "held-out, fewer steps": held_out * (self.fewer or calls) * (calls < n),
            })  # fmt: skip
        else:
            stages.update({"matching the gears": self.prompts * sum(calls), "decoding the full runs": self.prompts})
            for count in (self.prompts, held_out):
                stages[f"{count} prompts in each gear"] += count * sum(calls)
        return {stage: count for stage, count in stages.items() if count}


@dataclass(frozen=True)
class Estimate:
    """What a calibration will cost."""

    size: Size
    stages: dict[str, float]  # seconds by stage
    step: float  # seconds of a step of one batch
    disk: int  # bytes of the full runs that are kept
    memory: int  # bytes that the process has at its peak
    device_memory: int | None = None  # bytes on the accelerator at the peak; None without one

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return sum(self.stages.values())


@dataclass
class StepTimer(StepHook):
    """Computes the first steps and times them, then reuses, so that the run is over soon."""

    computed: int = 4  # how many steps are computed
    seconds: dict[int, float] = field(default_factory=dict)  # by step
    kept: int = 0  # bytes of one output, and of the latents before and after it
    outputs: dict[int, Tensor] = field(default_factory=dict)

    def should_compute(self, step: Step) -> bool:
        synchronize()
        self.since = time.perf_counter()
        return step.index < self.computed

    def model_output(self, step: SchedulerStep) -> Tensor:
        if step.step.index == 0:
            self.kept += sum(value.numel() * value.element_size() for value in (step.u, step.x, step.x))
        if step.computed:
            self.outputs[step.track] = step.u
        return self.outputs[step.track]

    def on_step_end(self, step: SchedulerStep, latents: Tensor) -> None:
        synchronize()
        self.seconds[step.step.index] = time.perf_counter() - self.since

    @property
    def pass_seconds(self) -> float:
        """Seconds of a computed step: the median after the first, which may compile or load."""
        timed = [seconds for index, seconds in self.seconds.items() if index < self.computed]
        return median(timed[1:] or timed)

    @property
    def skip_seconds(self) -> float:
        """Seconds of a skipped step."""
        skipped = [seconds for index, seconds in self.seconds.items() if index >= self.computed]
        return sum(skipped) / len(skipped) if skipped else 0.0


def estimate(setup: Setup, prompts: PromptSet, held_out: PromptSet, goal: Goal) -> Estimate:
    """Times a few short runs, of four computed steps each, and returns what a calibration like this will cost.

    Raises:
        ValueError: The call has several denoising loops, of which each is calibrated.
    """
    few, many = prompts[: min(PERTURBED, setup.batch_size)], prompts[: setup.batch_size]
    timed_run(setup, few, decode=False)  # loads, compiles and picks its kernels
    small, around_small, _ = timed_run(setup, few, decode=False)
    large, around, image = timed_run(setup, many, decode=True)
    n, skip = len(large.seconds), large.skip_seconds  # image-to-image runs fewer steps than it is asked for
    calls: int | Sequence[int] = goal.gear_calls(n) if goal.gears else calls_for(n, goal.budget, goal.speed)
    fewer = None
    if len(held_out) and isinstance(calls, int):  # a call may run other steps than it is asked for
        fewer_steps = max(1, round(calls * setup.call.num_inference_steps / n))
        plain = replace(setup, call=replace(setup.call, num_inference_steps=fewer_steps))
        fewer = len(timed_run(plain, few, decode=False)[0].seconds)
    size = Size(n, calls, len(prompts), len(held_out), goal.effort, setup.batch_size, fewer)
    slope = (large.pass_seconds - small.pass_seconds) / max(len(many) - len(few), 1)
    base = small.pass_seconds - slope * len(few) if len(many) > len(few) else small.pass_seconds

    def runs(count: int, computed: int, outside: float, idle: float = skip) -> float:
        """Returns the seconds of runs of so many prompts."""
        batches = [min(setup.batch_size, count - first) for first in range(0, count, setup.batch_size)]
        slopes = slope if len(many) > len(few) else 0.0
        each = (outside + computed * (base + slopes * samples) + (n - computed) * idle for samples in batches)
        return sum(each)

    matched, pairs = PREVIEWS * skip, n * (n - 1) / 2
    seconds = {
        "full runs": runs(size.prompts, n, around_small),
        "sensitivity of each step": (n - 1) * around_small + pairs * (small.pass_seconds + small.skip_seconds),
        "reading the sampler": runs(1, 1, around_small),
        "held-out, full": runs(size.held_out, n, around),
        "precision floor": runs(min(2, setup.batch_size, size.held_out), n, around),
    }
    if isinstance(calls, int):
        finals, plans = size.search.finals, size.search.room / calls
        seconds |= {
            f"searching {calls} calls": plans * runs(size.search.judges, calls, around_small, matched),
            f"matching {calls} calls": finals * runs(size.prompts, calls, around_small, matched),
            REFINING: size.passes().get(REFINING, 0) / calls * runs(1, calls, around_small),
            "held-out, by schedule": runs(size.held_out, calls, around),
            "held-out, fewer steps": runs(size.held_out, fewer or calls, around, 0.0),
        }
    else:
        finals = len(calls)
        seconds["matching the gears"] = sum(runs(size.prompts, made, around_small, matched) for made in calls)
        seconds["decoding the full runs"] = runs(size.prompts, 1, around)
        for count in (size.prompts, size.held_out):
            each = seconds.get(name := f"{count} prompts in each gear", 0.0)
            seconds[name] = each + sum(runs(count, made, around) for made in calls)
    stages = {stage: seconds[stage] / setup.ranks.size for stage in size.passes()}
    runs_kept = n * large.kept // len(many) * size.prompts
    images = image * size.held_out
    most = calls if isinstance(calls, int) else max(calls)
    paths = int(finals * runs_kept * (n + most) / (3 * n))  # how the runs of matched plans went
    return Estimate(
        size,
        stages,
        large.pass_seconds,
        runs_kept + images if setup.cache else 0,
        peak_memory() + runs_kept + paths + 2 * images + HEAP,
        device_memory(),
    )


def timed_run(setup: Setup, prompts: PromptSet, *, decode: bool) -> tuple[StepTimer, float, int]:
    """Runs a batch and returns its timer, the seconds outside of its steps, and the bytes of one decoded output."""
    timer, since = StepTimer(), time.perf_counter()
    outcome = setup.run(timer, prompts, decode=decode)
    if outcome.loops > 1:
        raise ValueError(
            f"a call has {outcome.loops} denoising loops here, each calibrated by itself: a dry run counts one"
        )
    total = time.perf_counter() - since
    image = outcome.images[0].nbytes if outcome.images else 0
    return timer, total - sum(timer.seconds.values()), image


def peak_memory() -> int:
    """Returns the bytes that this process has had at its peak; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    import sys

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def device_memory() -> int | None:
    """Returns the bytes that were allocated on the accelerator at the peak; None without one that tells."""
    if not torch.accelerator.is_available():
        return None
    tells = getattr(getattr(torch, torch.accelerator.current_accelerator().type), "max_memory_allocated", None)  # type: ignore[union-attr]
    return int(tells()) if tells else None
