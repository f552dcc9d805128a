"""AdaCache (Kahatapitiya et al., 2024), https://arxiv.org/abs/2411.02397: skips by how fast the output changes."""

import itertools
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, field_validator
from torch import Tensor

from ..errors import ScheduleError
from ..step import TINY, Step, mean_change, relative_change, worst
from .base import Policy

Entry = tuple[PositiveFloat, PositiveInt]
USUAL, POWER, GRADIENT = 0.385, 8, 10.0  # of the regularisation by motion, as released


@dataclass
class CodebookState:
    """What is known of the last computed step, by block or layer."""

    computed: dict[int, tuple[int, Tensor]] = field(default_factory=dict)  # the step, and what was computed there
    rates: dict[int, Tensor] = field(default_factory=dict)  # how fast it changed, with shape (B,); not read yet
    motions: dict[int, Tensor] = field(default_factory=dict)  # the last regularisation, with shape (B,)
    due: int = 0  # the next step to compute
    asked: int = 0  # the last step: its first block decides for all


class Codebook(Policy):
    """Looks up after each computed step when to compute next.

    The rate is the relative L1 change of the output since the one before, over the steps between. One
    number is read back after each computed step, none at skipped ones. Until there are two outputs,
    everything is computed. With `each`, the mean over blocks or layers decides for all of them, as in AdaCache;
    at the site `step` the whole output is looked at. With `frames`, the paper's regularisation by motion: between the
    first and the last tenth of the run the rate is multiplied by (m / 0.385)^8 plus ten times what that changed by a
    step since the last computed one, with m the relative L1 difference of neighbouring frames.
    """

    fitted: ClassVar[str] = "scale"
    shared: ClassVar[bool] = True
    state: ClassVar[Any] = CodebookState

    type: Literal["codebook"] = "codebook"
    # Rising bounds of the rate, each with the steps to go on until the next computed one; rates above all bounds go on
    # one step. The default is the paper's fast table for 30 steps.
    table: tuple[Entry, ...] = ((0.08, 6), (0.16, 5), (0.24, 4), (0.32, 3), (0.40, 2))
    scale: NonNegativeFloat = 1.0  # what the bounds are multiplied with
    frames: PositiveInt | None = None  # of how many frames the tokens are, one after the other

    @field_validator("table")
    @classmethod
    def _rises(cls, table: tuple[Entry, ...]) -> tuple[Entry, ...]:
        if any(late[0] <= early[0] for early, late in itertools.pairwise(table)):
            raise ValueError("the bounds of a codebook must rise")
        return table

    def compute(self, state: CodebookState, step: Step) -> bool:
        if state.rates and step.index != state.asked:
            rate, state.rates = worst(mean_change(state.rates.values()), step.groups), {}
            entry = bisect_right(self.table, rate, key=lambda entry: entry[0] * self.scale)
            last = max(index for index, _ in state.computed.values())
            state.due = last + (self.table[entry][1] if entry < len(self.table) else 1)
        state.asked = step.index
        return step.index >= state.due

    def observe(self, state: CodebookState, step: Step, output: Tensor) -> None:
        index, old = state.computed.get(step.instance, (0, None))
        if old is not None and old.shape == output.shape:
            gap = step.index - index
            rate = relative_change(output, old) / gap
            state.rates[step.instance] = rate * self.motion(state, step, output, gap) if self.frames else rate
        state.computed[step.instance], state.due = (step.index, output.clone()), 0

    def motion(self, state: CodebookState, step: Step, output: Tensor, gap: int) -> Tensor:
        """Returns what the rate is multiplied with where the output (B, L, D) has L tokens of some frames."""
        assert self.frames is not None
        if output.ndim != 3 or output.shape[1] % self.frames:
            raise ScheduleError(f"an output with shape {tuple(output.shape)} is not of {self.frames} frames")
        parts, one = output.float().unflatten(1, (self.frames, -1)), output.new_ones(len(output)).float()
        done, size = step.index / len(step.times), parts.abs().flatten(2).sum(2)
        new = one
        if self.frames > 1 and 0.1 <= done <= 0.9:
            moved = parts.diff(dim=1).abs().flatten(1).sum(1)
            new = (moved / (size[:, 1:].sum(1) + size[:, :-1].sum(1)).clamp_min(TINY) / USUAL) ** POWER
        old, state.motions[step.instance] = state.motions.get(step.instance, one), new
        return new + GRADIENT * (new - old).abs() / gap
