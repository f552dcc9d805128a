"""What a calibration will cost: passes of the denoiser, disk, memory and minutes, from a few steps that are timed."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor

from ..hooks import SchedulerStep, StepHook
from ..profiling.measure import PERTURBED
from ..runs import PromptSet, Setup, synchronize
from ..step import Step
from .search import EFFORT, judges_for

PLANS = 2  # that are matched on all prompts
HEAP = 64 * 2**20  # bytes that thousands of runs leave in pieces: 30 to 150 MB were measured
PREVIEWS = 6.0  # a step that is matched takes as long as so many that are skipped: it is tried three times, and solved


@dataclass(frozen=True)
class Size:
    """How large a calibration is.

    Arguments:
        steps: Of a full run.
        calls: Steps that are computed.
        prompts: Calibration prompts.
        held_out: Held-out prompts.
        effort: Full runs of one prompt that the search of the plan may cost.
    """

    steps: int
    calls: int
    prompts: int
    held_out: int = 0
    effort: float = EFFORT

    def passes(self) -> dict[str, int]:
        """Returns the passes of the denoiser by stage: calls, one for each prompt of a batch; guidance doubles them.

        Those of the search are the most it makes: it ends where no move is left that its budget could pay.
        """
        judges = judges_for(self.effort, self.calls / self.steps, self.prompts)
        stages = {
            "full runs": self.prompts * self.steps,
            "sensitivity of each step": min(PERTURBED, self.prompts) * self.steps * (self.steps - 1) // 2,
            "reading the sampler": 1,
            f"searching {self.calls} calls": int(self.effort * self.steps / judges) * judges,
            f"matching {self.calls} calls": PLANS * self.prompts * self.calls,
            "held-out, full": self.held_out * self.steps,
            "held-out, by schedule": self.held_out * self.calls,
            "precision floor": min(2, self.held_out) * self.steps * (self.held_out > 1),
            "held-out, fewer steps": self.held_out * self.calls,
        }
        return {stage: count for stage, count in stages.items() if count}


@dataclass(frozen=True)
class Estimate:
    """What a calibration will cost.

    Arguments:
        size: How large it is.
        stages: Seconds by stage.
        step: Seconds of a step of one batch.
        disk: Bytes of the full runs that are kept.
        memory: Bytes that the process has at its peak.
        device_memory: Bytes on the accelerator at the peak; None without one.
    """

    size: Size
    stages: dict[str, float]
    step: float
    disk: int
    memory: int
    device_memory: int | None = None

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return sum(self.stages.values())


@dataclass
class StepTimer(StepHook):
    """Computes the first steps and times them, then reuses, so that the run is over soon.

    Arguments:
        computed: How many steps are computed.
        seconds: By step.
        kept: Bytes of one output, and of the latents before and after it.
    """

    computed: int = 4
    seconds: dict[int, float] = field(default_factory=dict)
    kept: int = 0
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


def estimate(setup: Setup, prompts: PromptSet, held_out: PromptSet, calls: int, effort: float = EFFORT) -> Estimate:
    """Times three short runs, of four computed steps each, and returns what a calibration like this will cost.

    Arguments:
        setup: Who runs, and how.
        prompts: Calibration prompts.
        held_out: Held-out prompts.
        calls: Steps that are computed.
        effort: Full runs of one prompt that the search of the plan may cost.
    """
    size = Size(setup.call.num_inference_steps, calls, len(prompts), len(held_out), effort)
    few, many = prompts[:PERTURBED], prompts[: setup.batch_size]
    timed_run(setup, few, decode=False)  # loads, compiles and picks its kernels
    small, around_small, _ = timed_run(setup, few, decode=False)
    large, around, image = timed_run(setup, many, decode=True)
    slope = (large.pass_seconds - small.pass_seconds) / max(len(many) - len(few), 1)
    base = small.pass_seconds - slope * len(few) if len(many) > len(few) else small.pass_seconds
    n, skip = size.steps, large.skip_seconds

    def runs(count: int, computed: int, outside: float, idle: float = skip) -> float:
        """Returns the seconds of runs of so many prompts."""
        batches = [min(setup.batch_size, count - first) for first in range(0, count, setup.batch_size)]
        slopes = slope if len(many) > len(few) else 0.0
        each = (outside + computed * (base + slopes * samples) + (n - computed) * idle for samples in batches)
        return sum(each)

    pairs, judges = n * (n - 1) / 2, judges_for(effort, calls / n, size.prompts)
    searched = effort * n / (judges * calls)  # plans
    matched = PREVIEWS * skip
    seconds = (
        runs(size.prompts, n, around_small),
        (n - 1) * around_small + pairs * (small.pass_seconds + small.skip_seconds),
        runs(1, 1, around_small),
        searched * runs(judges, calls, around_small, matched),
        PLANS * runs(size.prompts, calls, around_small, matched),
        runs(size.held_out, n, around),
        runs(size.held_out, calls, around),
        runs(2 * (size.held_out > 1), n, around),
        runs(size.held_out, calls, around, 0.0),
    )
    stages = dict(zip(size.passes(), (value / setup.ranks.size for value in seconds if value), strict=True))
    runs_kept = n * large.kept // len(many) * size.prompts
    images = image * size.held_out
    paths = int(PLANS * runs_kept * (n + calls) / (3 * n))  # how the runs of matched plans went
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
