"""BWCache (Cui et al., 2025), https://arxiv.org/abs/2509.13789: how far all blocks moved, on average."""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat
from torch import Tensor

from ..step import Step, mean_change, relative_change, worst
from .base import Policy


@dataclass
class BlockChanges:
    """What the blocks gave last, and how far they moved, by their numbers."""

    outputs: dict[int, Tensor] = field(default_factory=dict)
    changes: dict[int, Tensor] = field(default_factory=dict)  # of each sample, with shape (B,); not read yet

    def note(self, number: int, output: Tensor) -> None:
        """Notes what a block gave, with shape (B, *)."""
        old = self.outputs.get(number)
        if old is not None and old.shape == output.shape:
            self.changes[number] = relative_change(output, old)
        self.outputs[number] = output.clone()


@dataclass
class BlockwiseState(BlockChanges):
    """What the blocks gave, and when they are computed next."""

    due: int = 0  # the next step to compute
    index: int = -1  # the last step that was decided


class Blockwise(Policy):
    """Reuses all blocks for some steps once the mean of their relative L1 changes is below a threshold.

    All blocks of the site follow one decision. One number is read from the device after each computed step.
    """

    shared: ClassVar[bool] = True
    state: ClassVar[Any] = BlockwiseState

    type: Literal["blockwise"] = "blockwise"
    threshold: NonNegativeFloat = 0.15  # of the mean change; the paper has 0.15
    # how much of the run is skipped at once, at least one step; the paper has a tenth
    reuse: Annotated[float, Field(gt=0, le=1)] = 0.1
    cool_down: Annotated[float, Field(ge=0, le=1)] = 0.1  # how much of the run is computed at its end

    def compute(self, state: BlockwiseState, step: Step) -> bool:
        if step.index != state.index:  # the first block decides for all
            state.index, count = step.index, len(step.times)
            if state.changes:
                change = worst(mean_change(state.changes.values()), step.groups)
                state.changes = {}
                last = count - max(self.cool_down > 0, round(self.cool_down * count))
                if change < self.threshold:
                    state.due = min(step.index + max(1, round(self.reuse * count)), max(last, step.index))
        return step.index >= state.due

    def observe(self, state: BlockwiseState, step: Step, output: Tensor) -> None:
        state.note(step.instance, output)
