"""SortBlock (Chen et al., 2025), https://arxiv.org/abs/2508.00412: the blocks that changed most are computed."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from ..distributed import highest
from ..profile import Profile
from ..step import Step
from .base import Policy
from .blockwise import BlockChanges


@dataclass
class RankState(BlockChanges):
    """What the blocks gave at the last steps where all were computed."""

    chosen: frozenset[int] | None = None  # what is computed between; None until it is known


class Rank(Policy):
    """Computes all blocks at every so many steps, and between them those whose outputs changed most.

    The first two steps have all blocks. The order is that of the relative L1 changes between the last two steps with
    all of them, which are read from the device at once.
    """

    fitted: ClassVar[str] = "share"
    shared: ClassVar[bool] = True
    state: ClassVar[Any] = RankState

    type: Literal["rank"] = "rank"
    interval: Annotated[int, Field(ge=2)] = 4  # steps from one with all blocks to the next
    share: Annotated[float, Field(ge=0, le=1)] = 0.3  # the fraction of the blocks that is computed between them

    def compute(self, state: RankState, step: Step) -> bool:
        if self._has_all(step.index):
            state.chosen = None
            return True
        if state.chosen is None and state.changes:
            numbers = list(state.changes)
            values = torch.stack([state.changes[number].max() for number in numbers])
            order = highest(values, step.groups).argsort(descending=True, stable=True).tolist()
            state.chosen = frozenset(numbers[k] for k in order[: round(self.share * len(numbers))])
        return state.chosen is None or step.instance in state.chosen

    def observe(self, state: RankState, step: Step, output: Tensor) -> None:
        if self._has_all(step.index):
            state.note(step.instance, output)

    def _has_all(self, index: int) -> bool:
        """Whether all blocks are computed at a step."""
        return index == 0 or (index - 1) % self.interval == 0

    @classmethod
    def fit(cls, profile: Profile, *, budget: float = 0.5, **params: Any) -> Self:
        """Returns the share that spends the budget on blocks of equal cost: one step in `interval` has all."""
        policy = cls(**{"interval": max(2, round(2 / budget)), **params})
        rest = (budget * policy.interval - 1) / (policy.interval - 1)
        return policy.model_copy(update={"share": min(max(rest, 0.0), 1.0)})
