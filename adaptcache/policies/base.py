"""The interface of a policy: when to compute."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ..step import Signal, Step

if TYPE_CHECKING:
    from ..profile import Profile

__all__ = ["Account", "Policy"]


@dataclass(frozen=True)
class Account:
    """What a policy chose in a run.

    Arguments:
        gear: The plan that was followed last.
        why: Says how it came about; may read from the device, so it is called after the run.
    """

    gear: int
    why: Callable[[], str] = str


class Policy(ABC, BaseModel):
    """Decides at which steps the site is computed.

    A policy is frozen. What changes during a run is a small plain object, made by `init` and held by
    the runtime alone. Step 0 is always computed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str

    @property
    def signal(self) -> Signal:
        """What `step.x` has to be at each step; static policies read nothing and pay nothing."""
        return "none"

    def init(self, times: tuple[float, ...]) -> Any:
        """Returns the state of a new run on a grid of times with shape (N,)."""
        return None

    def gear(self, state: Any, chosen: int) -> int:
        """Returns the plan that is followed now: `chosen` by the user, but for policies that choose."""
        return chosen

    def account(self, state: Any, chosen: int) -> Account:
        """Returns what was chosen in this run."""
        return Account(self.gear(state, chosen))

    @abstractmethod
    def compute(self, state: Any, step: Step) -> bool:
        """Whether to compute at this step. Asked at every step after the first, which is always computed.

        Reads at most one number from the device, by `worst(values, step.groups)`: so the ranks that run
        a denoiser together decide alike.
        """

    def observe(self, state: Any, step: Step, output: Tensor) -> None:
        """Notes what left the site at a step that was computed. Reads nothing from the device.

        Arguments:
            state: The state of the run.
            step: As it was given to `compute`.
            output: What a forecast would have to meet, with shape (B, *).
        """

    def verify(self, state: Any, step: Step, found: Tensor, expected: Tensor) -> None:
        """Notes what blocks that always run found at a skipped step, where a site has such blocks.

        Arguments:
            state: The state of the run.
            step: As it was given to `compute`.
            found: What they added, run on the forecast, with shape (B, *).
            expected: What the forecast of their addition was, with shape (B, *).
        """

    @classmethod
    @abstractmethod
    def fit(cls, profile: Profile, *, budget: float = 0.5, **knobs: Any) -> Self:
        """Returns the policy that computes about `budget` of the steps of a profile.

        Arguments:
            profile: What was measured on calibration prompts.
            budget: The fraction of the steps that are computed, in (0, 1].
            knobs: Fields of the policy that are not fitted.
        """
