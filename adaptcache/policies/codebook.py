"""AdaCache (Kahatapitiya et al., 2024), https://arxiv.org/abs/2411.02397: skips by how fast the output changes."""

import itertools
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, field_validator
from torch import Tensor

from ..step import Step, relative_change, worst
from .base import Policy

Entry = tuple[PositiveFloat, PositiveInt]


@dataclass
class CodebookState:
    """What is known of the last computed step, by block or layer."""

    computed: dict[int, tuple[int, Tensor]] = field(default_factory=dict)  # the step, and what was computed there
    rates: dict[int, Tensor] = field(default_factory=dict)  # how fast it changed, with shape (B,); not read yet
    due: int = 0  # the next step to compute
    asked: int = 0  # the last step: its first block decides for all


class Codebook(Policy):
    """Looks up after each computed step when to compute next.

    The rate is the relative L1 change of the output since the one before, over the steps between. One
    number is read back after each computed step, none at skipped ones. Until there are two outputs,
    everything is computed. With `each`, the mean over blocks or layers decides for all of them, as in AdaCache;
    at the site `step` the whole output is looked at. Without the paper's regularisation by motion.
    """

    fitted: ClassVar[str] = "scale"
    shared: ClassVar[bool] = True

    type: Literal["codebook"] = "codebook"
    # Rising bounds of the rate, each with the steps to go on until the next computed one; rates above all bounds go on
    # one step. The default is the paper's fast table for 30 steps.
    table: tuple[Entry, ...] = ((0.08, 6), (0.16, 5), (0.24, 4), (0.32, 3), (0.40, 2))
    scale: NonNegativeFloat = 1.0  # what the bounds are multiplied with

    @field_validator("table")
    @classmethod
    def _rises(cls, table: tuple[Entry, ...]) -> tuple[Entry, ...]:
        if any(late[0] <= early[0] for early, late in itertools.pairwise(table)):
            raise ValueError("the bounds of a codebook must rise")
        return table

    def init(self, times: tuple[float, ...]) -> CodebookState:
        return CodebookState()

    def compute(self, state: CodebookState, step: Step) -> bool:
        if state.rates and step.index != state.asked:
            rate, state.rates = worst(torch.stack(list(state.rates.values())).mean(0), step.groups), {}
            entry = bisect_right(self.table, rate, key=lambda entry: entry[0] * self.scale)
            last = max(index for index, _ in state.computed.values())
            state.due = last + (self.table[entry][1] if entry < len(self.table) else 1)
        state.asked = step.index
        return step.index >= state.due

    def observe(self, state: CodebookState, step: Step, output: Tensor) -> None:
        index, old = state.computed.get(step.instance, (0, None))
        if old is not None and old.shape == output.shape:
            state.rates[step.instance] = relative_change(output, old) / (step.index - index)
        state.computed[step.instance], state.due = (step.index, output.clone()), 0
