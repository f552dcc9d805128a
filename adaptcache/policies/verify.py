"""SpeCa (Liu et al., 2025), https://arxiv.org/abs/2509.11628: check forecasts on what is computed anyway."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor

from ..profile import Profile
from ..step import Step, relative_change, worst
from .base import Policy
from .replay import find_nearest


@dataclass
class VerifyState:
    """The error of the last forecast that was checked, of each sample; not read yet."""

    error: Tensor | None = None


class Verify(Policy):
    """Skips until the last block, run on a forecast, does not give what was forecast.

    On the site `blocks` with a last block that always runs (`tail` = 1): its residual is compared with its
    own forecast. A bad step is not taken back (nor is it in the released code): the *next* one is computed.
    The threshold falls during the run. On other sites there is nothing to check, and `max_skip` decides.
    """

    fitted: ClassVar[str] = "max_skip"
    state: ClassVar[Any] = VerifyState

    type: Literal["verify"] = "verify"
    threshold: NonNegativeFloat = 0.3  # the relative L1 error that is accepted at the start
    decay: Annotated[float, Field(gt=0, le=1)] = 0.5  # what it is multiplied with over the whole run
    least: NonNegativeFloat = 0.1  # below which it does not fall
    warm_up: PositiveInt = 3  # steps at the start that are all computed
    max_skip: NonNegativeInt = 5  # the most steps skipped in a row

    def compute(self, state: VerifyState, step: Step) -> bool:
        error, state.error = state.error, None
        if step.index < self.warm_up or step.index - 1 - step.past[0] >= self.max_skip:
            return True
        progress = step.index / max(len(step.times) - 1, 1)
        allowed = max(self.least, self.threshold * self.decay**progress)
        return error is not None and worst(error, step.groups) > allowed

    def verify(self, state: VerifyState, step: Step, found: Tensor, expected: Tensor) -> None:
        state.error = relative_change(expected, found)

    @classmethod
    def fit(cls, profile: Profile, *, budget: float = 0.5, **params: Any) -> Self:
        """Returns the longest skip that comes nearest to the budget where no forecast is found bad."""
        params.setdefault("warm_up", min(3, max(1, round(budget * profile.steps))))
        made = [cls(max_skip=skip, **params) for skip in range(profile.steps)]
        return find_nearest(made, profile, budget)
