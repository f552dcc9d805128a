"""What the policies have in common that compare a number with a threshold during the run."""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor

from ..step import Signal, Step, worst
from .base import Policy


@dataclass
class ThresholdState:
    """What such a policy remembers of a run; tensors stay on the device."""

    before: Tensor | None = None  # the signal at the step before
    anchor: Tensor | None = None  # the signal at the last computed step
    output: Tensor | None = None  # what was computed there
    total: Tensor | float = 0.0  # the score so far, of each sample, with shape (B,)
    notes: list[Tensor] = field(default_factory=list)  # what else a method keeps


class Threshold(Policy):
    """Computes where a score reaches a threshold.

    The score is kept for each sample of a batch, on the device; one number is read back, the largest, and
    only at steps that are free to skip.
    """

    accumulates: ClassVar[bool] = False  # whether scores add up until the next computed step
    inclusive: ClassVar[bool] = False  # whether the threshold itself still skips, as in some codes
    state: ClassVar[Any] = ThresholdState

    threshold: NonNegativeFloat  # higher skips more; 0 computes all
    warm_up: PositiveInt = 1  # steps at the start that are all computed
    # up to which fraction of the steps all are computed, where that is more: DiCache has 0.2
    retention: Annotated[float, Field(ge=0, le=1)] = 0.0
    cool_down: NonNegativeInt = 0  # steps at the end that are all computed
    max_skip: NonNegativeInt | None = None  # the most steps skipped in a row
    on: Signal = "input"  # what is looked at

    @property
    def signal(self) -> Signal:  # type: ignore[override]
        return self.on

    @abstractmethod
    def score(self, state: ThresholdState, step: Step, x: Tensor, before: Tensor) -> Tensor:
        """Returns the score of each sample, with shape (B,), from the signal now and before. Does not sync."""

    def must_compute(self, step: Step) -> bool:
        """Whether the step is computed whatever the score."""
        count = len(step.times)
        if step.index < max(self.warm_up, int(self.retention * count) + 1) or step.index >= count - self.cool_down:
            return True
        return self.max_skip is not None and step.index - 1 - step.past[0] >= self.max_skip

    def compute(self, state: ThresholdState, step: Step) -> bool:
        before, state.before = state.before, step.x
        if step.x is None or before is None or before.shape != step.x.shape:
            return True
        score = self.score(state, step, step.x, before)
        state.total = state.total + score if self.accumulates else score
        if self.must_compute(step):
            return True
        value = worst(state.total, step.groups)
        return value > self.threshold if self.inclusive else value >= self.threshold

    def observe(self, state: ThresholdState, step: Step, output: Tensor) -> None:
        state.before = state.anchor = step.x
        state.output, state.total = output, 0.0
