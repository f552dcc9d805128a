"""Reference runs: what is kept of a full run, and the hook that keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from ..errors import AttachError
from ..hooks import SchedulerStep, StepHook
from ..runs import PromptSet, Setup
from ..schedule.format import same_grid
from ..step import Step
from .statistics import check_finite


@dataclass
class Trajectory:
    """One full run of a batch of B prompts; lists have one entry a track (video, audio, ...)."""

    times: tuple[float, ...] = ()  # the grid, with shape (N,)
    u: list[list[Tensor]] = field(default_factory=list)  # the guided outputs, N tensors with shape (B, *)
    x: list[list[Tensor]] = field(default_factory=list)  # the latents before each step, N tensors with shape (B, *)
    y: list[list[Tensor]] = field(default_factory=list)  # where the scheduler landed, N tensors with shape (B, *)
    # how many samples the denoiser was called with for each of the latents, N numbers
    branches: list[float] = field(default_factory=list)
    # whether the output with the prompt was there at each step, beside the guided one, of all that the run denoises
    guided: bool = False
    left: int = 0  # how many steps of its grid it left out at the end: some pipelines do (`denoising_end`)
    full: tuple[float, ...] = ()  # where its times are a schedule's own: those of the full run

    @property
    def lead(self) -> int:
        """The first track that was stepped: not 0 where a pipeline steps copies of its scheduler, one a frame."""
        return next((number for number, outputs in enumerate(self.u) if outputs), 0)

    def at(self, track: int) -> int:
        """The track that stands for another: a scheduler that is set anew in each loop may be numbered otherwise."""
        return track if track < len(self.u) and self.u[track] else self.lead

    @property
    def alike(self) -> bool:
        """Whether outputs have the shape of the latents: a learned variance and logits have not."""
        return all(
            u.shape == x.shape for us, xs in zip(self.u, self.x, strict=True) for u, x in zip(us, xs, strict=True)
        )

    def head(self, samples: int, of: int, first: int = 0) -> Trajectory:
        """Returns the trajectory of some samples of a batch, by default of the first ones."""

        def cut(tracks: list[list[Tensor]]) -> list[list[Tensor]]:
            last = first + samples
            return [[v[first * len(v) // of : last * len(v) // of] for v in track] for track in tracks]

        return replace(self, u=cut(self.u), x=cut(self.x), y=cut(self.y))


class Recorder(StepHook):
    """Computes every step and keeps every `stride`-th, on the CPU; the prompts of the batch are for errors."""

    follows_views = follows_loops = False
    reads_branches = True

    def __init__(self, stride: int = 1, prompts: PromptSet | None = None) -> None:
        self.stride, self.prompts = stride, prompts or PromptSet(("",))
        self.run = Trajectory()

    def on_run_start(self, times: tuple[float, ...]) -> None:
        self.run = Trajectory(times[:: self.stride], guided=True)

    def model_output(self, step: SchedulerStep) -> Tensor:
        if step.step.index % self.stride == 0:
            self._keep(self.run.u, step, step.u, "the denoiser's output")
            self._keep(self.run.x, step, step.x, "the latents before the step")
            if step.track == 0:
                self.run.branches.append(step.branches)
            self.run.guided &= step.cond is not None
        return step.u

    def on_step_end(self, step: SchedulerStep, latents: Tensor) -> None:
        if (step.step.index + 1) % self.stride == 0:
            self._keep(self.run.y, step, latents, "the latents after the step")

    def _keep(self, tracks: list[list[Tensor]], step: SchedulerStep, value: Tensor, what: str) -> None:
        while len(tracks) <= step.track:
            tracks.append([])
        kept = value.detach().to("cpu", copy=True).contiguous()
        check_finite(kept, what, step.step.index, self.prompts)  # now, not hours later
        tracks[step.track].append(kept)


class Replay(StepHook):
    """Goes where a recorded run went, with one call of the denoiser: all the pipeline has to do is decode."""

    def __init__(self, run: Trajectory) -> None:
        self.trajectory = run

    def follows(self, times: tuple[float, ...]) -> bool:
        return same_grid(times[: len(self.trajectory.times)], self.trajectory.times)

    def should_compute(self, step: Step) -> bool:
        return False  # but for the first step, which always is

    def model_output(self, step: SchedulerStep) -> Tensor:
        return self.trajectory.u[self.trajectory.at(step.track)][step.step.index].to(step.u)


def run_reference(setup: Setup, batch: PromptSet) -> Trajectory:
    """Runs one batch in full and returns its trajectory.

    Raises:
        ValueError: It took no step.
        AttachError: Parts of its latents took more steps than others.
    """
    recorder = Recorder(setup.refine, batch)
    setup.run(recorder, batch, reference=True)
    run = recorder.run
    if not run.times:
        raise ValueError(
            "the run has no steps: at this strength there is no step left to take; raise strength, or the steps"
        )
    if len({len(outputs) for outputs in run.y if outputs}) > 1:
        raise AttachError(
            "parts of the latents take more steps than others (frames that are given, or overlap?), and calibration "
            "follows those that step together: calibrate on a call without them, then attach the schedule here"
        )
    if (taken := len(run.y[run.lead])) < len(run.times):
        return replace(run, times=run.times[:taken], branches=run.branches[:taken], left=len(run.times) - taken)
    return run
