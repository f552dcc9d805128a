"""What an engine asks and tells while it runs a denoising loop: the interface of recorder, matcher and runtime."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .errors import LoopError
from .step import Step


@dataclass
class SchedulerStep:
    """A step the scheduler is about to take. Engines subclass it.

    Arguments:
        step: Where the run is.
        track: Which latents: 0 for the pipeline's own scheduler, 1 and up for further ones (audio next to video).
        view: Which of several views that are denoised at the same time (tiles, panoramas).
        computed: Whether the denoiser was called as it was decided.
        x: The latents before the step, with shape (B, *).
        u: The guided model output, with shape (B, *); it means nothing where `computed` is false.

    Attributes:
        branches: How many samples the denoiser was called with for each of the latents: 2 with guidance.
        made: Whether the denoiser was called though it was to be skipped, as the call had another shape than any
            before (key-value caches): `u` is true then, and no part of what the plan builds on.
        cond: With the shape of `u`, what the denoiser gave with the prompt, where guidance made `u` of that and of
            one output more, and the hook reads it.
    """

    step: Step
    track: int
    view: int
    computed: bool
    x: Tensor
    u: Tensor
    branches = 1.0  # no arguments, so that those of subclasses stay where they are
    made = False
    cond: Tensor | None = field(default=None, init=False, repr=False)

    @property
    def with_prompt(self) -> Tensor:
        """What the denoiser gave with the prompt: `cond`, or `u` where nothing guides; `LoopError` if untold."""
        if self.cond is None and self.branches != 1:
            raise LoopError(
                "the schedule uses the output with the prompt, which cannot be told among the "
                f"{self.branches:g} of step {self.step.index}: calibrate on calls like this, or with --no-branches"
            )
        return self.u if self.cond is None else self.cond

    def preview(self, u: Tensor) -> Tensor:
        """Returns where a copy of the scheduler lands with the model output `u`, in the dtype of `u`.

        Where that is the dtype of the real step, a stochastic scheduler draws the noise of the real step.
        """
        raise NotImplementedError


class StepHook:
    """Follows denoising loops and decides in them; by default it computes every step and changes nothing.

    Arguments:
        follows_views: Whether it keeps the views of one time apart; the engine refuses them otherwise.
        follows_loops: Whether it copes with several loops in one call; otherwise the engine ends the call after the
            one that it follows: number `loop`, or the first one, or a longer one after it (a draft comes first, say).
        reads_input: Whether `should_compute` looks at what enters the denoiser (`Step.x`).
        reads_branches: Whether `model_output` looks at the output with the prompt (`SchedulerStep.cond`).
    """

    loop: int | None = None  # which loop of a call it follows, from 0, if it follows one
    own_times: tuple[float, ...] = ()  # that a run has instead of those of its grid
    follows_views = True
    follows_loops = True
    reads_input = False
    reads_branches = False

    def install(self, gate: Any) -> AbstractContextManager[Any]:
        """Installs what the hook needs inside of the denoisers, until the context is closed."""
        return nullcontext()

    def follows(self, times: tuple[float, ...]) -> bool:
        """Whether a loop on this grid is followed; it is computed in full otherwise, and nothing of it is told."""
        return True

    def on_grid(self, times: tuple[float, ...]) -> None:
        """A run is about to have `own_times` instead of these, with shape (N,). Not called of hooks without."""

    def on_run_start(self, times: tuple[float, ...]) -> None:
        """A loop has started, on a grid of times with shape (N,). Called before its first `model_output`."""

    def should_compute(self, step: Step) -> bool:
        """Whether to call the denoiser at this step. Asked once a step.

        The first step is always computed. It is asked before `on_run_start`, with no times: only the first
        call of `scheduler.step` tells for sure where image-to-image starts in the grid.
        """
        return True

    def model_output(self, step: SchedulerStep) -> Tensor:
        """Returns the model output that the scheduler is to use, with the shape of `step.u`."""
        return step.u

    def on_step_end(self, step: SchedulerStep, latents: Tensor) -> None:
        """The scheduler has landed on `latents`, with shape (B, *)."""

    def on_change(self, what: str) -> None:
        """A callback of the call changed what its steps depend on: "latents", say."""

    def on_run_end(self) -> None:
        """The loop is over, or was abandoned: release tensors."""
