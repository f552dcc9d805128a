"""A table from how fast the output changes to how many steps to skip.

References:
    | AdaCache (Kahatapitiya et al., 2024), https://arxiv.org/abs/2411.02397
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, field_validator
from torch import Tensor

from ..step import Step, relative_change, worst
from .base import Policy

if TYPE_CHECKING:
    from ..profile import Profile

__all__ = ["Codebook"]

Entry = tuple[Annotated[float, Field(gt=0)], Annotated[int, Field(ge=1)]]


@dataclass
class Pace:
    """The last output, how fast it changed (not read yet), and when the next one is due."""

    index: int = 0
    output: Tensor | None = None
    rate: Tensor | None = None
    due: int = 0


class Codebook(Policy):
    """Looks up after each computed step when to compute next.

    The rate is the relative L1 change of the output since the one before, over the steps between. One
    number is read back after each computed step, none at skipped ones. Until there are two outputs,
    everything is computed. AdaCache looks at residuals within layers and regularises by motion; here the
    whole step's output is looked at.

    Arguments:
        table: Rising bounds of the rate, each with the steps to go on until the next computed one; rates
            above all bounds go on one step. The default is the paper's fast table for 30 steps.
        scale: What the bounds are multiplied with.
    """

    type: Literal["codebook"] = "codebook"
    table: tuple[Entry, ...] = ((0.08, 6), (0.16, 5), (0.24, 4), (0.32, 3), (0.40, 2))
    scale: Annotated[float, Field(ge=0)] = 1.0

    @field_validator("table")
    @classmethod
    def _rises(cls, table: tuple[Entry, ...]) -> tuple[Entry, ...]:
        if any(late[0] <= early[0] for early, late in itertools.pairwise(table)):
            raise ValueError("the bounds of a codebook must rise")
        return table

    def init(self, times: tuple[float, ...]) -> Pace:
        return Pace()

    def compute(self, state: Pace, step: Step) -> bool:
        if state.rate is not None:
            rate, state.rate = worst(state.rate, step.groups), None
            ahead = next((skip for bound, skip in self.table if rate < bound * self.scale), 1)
            state.due = state.index + ahead
        return step.index >= state.due

    def observe(self, state: Pace, step: Step, output: Tensor) -> None:
        if state.output is not None and state.output.shape == output.shape:
            state.rate = relative_change(output, state.output) / (step.index - state.index)
        state.index, state.output, state.due = step.index, output.clone(), 0

    @classmethod
    def fit(cls, profile: Profile, *, budget: float = 0.5, **knobs: Any) -> Self:
        """Returns the table, scaled to spend the budget as far as its longest skip allows."""
        from .replay import with_budget

        return with_budget(lambda scale: cls(scale=scale, **knobs), profile, budget)
