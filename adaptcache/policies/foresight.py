"""Foresight (Adnan et al., 2025), https://arxiv.org/abs/2506.00329: each block by its own errors of reuse."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat
from torch import Tensor

from ..profile import Profile
from ..step import TINY, Step, worst
from .base import Policy


@dataclass
class ForesightState:
    """What is known of one block; tensors stay on the device."""

    output: Tensor | None = None
    bound: Tensor | None = None  # the error of reuse in the warm-up, later steps weigh more; with shape (B,)
    error: Tensor | None = None  # the last one, with shape (B,)
    skips: bool = False  # whether the error allows reuse until the next step that is always computed


class Foresight(Policy):
    """Reuses a block between steps that are always computed, while its last change is small by its own standard.

    The standard is the mean squared change in the warm-up, each step weighing twice as much as the one before.
    One number is read from the device for each block and period.
    """

    state: ClassVar[Any] = ForesightState

    type: Literal["foresight"] = "foresight"
    threshold: NonNegativeFloat = 0.5  # the error that still allows reuse, over that of the warm-up: the paper's gamma
    interval: Annotated[int, Field(ge=2)] = 2  # every so many steps all blocks are computed: the paper's R
    warm_up: Annotated[float, Field(gt=0, le=1)] = 0.15  # how much of the run is computed at its start

    def compute(self, state: ForesightState, step: Step) -> bool:
        start = max(2, round(self.warm_up * len(step.times)))
        if step.index < start or state.error is None or state.bound is None:
            return True
        if (step.index - start) % self.interval == 0:
            state.skips = False
            return True
        if not state.skips:
            assert state.bound is not None
            state.skips = worst(state.error / state.bound.clamp_min(TINY), step.groups) <= self.threshold
        return not state.skips

    def observe(self, state: ForesightState, step: Step, output: Tensor) -> None:
        old, state.output = state.output, output.clone()
        if old is None or old.shape != output.shape:
            return
        state.error = (output.float() - old.float()).pow(2).flatten(1).mean(1)
        if step.index < max(2, round(self.warm_up * len(step.times))):
            state.bound = state.error if state.bound is None else (state.bound + state.error) / 2

    @classmethod
    def fit(cls, profile: Profile, *, budget: float = 0.5, **params: Any) -> Self:
        """Returns the threshold that comes nearest to the budget; less than one in `interval` is never computed."""
        return super().fit(profile, budget=budget, **{"interval": max(2, round(1 / budget)), **params})
