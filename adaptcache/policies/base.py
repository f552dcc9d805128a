"""The interface of a policy: when to compute."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import NoneType
from typing import Any, ClassVar, Self

from torch import Tensor

from ..limits import FrozenModel
from ..profile import Profile
from ..step import Signal, Step
from .replay import fit_threshold


@dataclass(frozen=True)
class Account:
    """What a policy chose in a run."""

    gear: int  # the plan that was followed last
    why: Callable[[], str] = str  # gives the reason; may read from the device, so it is called after the run


class Policy(ABC, FrozenModel):
    """Decides at which steps the site is computed; step 0 always is.

    A policy is frozen. What changes during a run is a small plain object, made by `init` and held by
    the runtime alone.
    """

    fitted: ClassVar[str] = "threshold"  # the field by which `fit` spends a budget: more of it computes less
    static: ClassVar[bool] = False  # whether `steps` tells before a run what is computed
    shared: ClassVar[bool] = False  # whether blocks that decide for themselves share the state of a run
    state: ClassVar[Any] = NoneType  # the class of that state
    signal: ClassVar[Signal] = "none"  # what `step.x` has to be at each step; static policies read nothing

    type: str

    def init(self, times: tuple[float, ...]) -> Any:
        """Returns the state of a new run on a grid of times with shape (N,)."""
        return self.state()

    def gear(self, state: Any, chosen: int) -> int:
        """Returns the plan that is followed now: `chosen` by the user, except in policies that choose."""
        return chosen

    def account(self, state: Any, chosen: int) -> Account:
        """Returns what was chosen in this run."""
        return Account(self.gear(state, chosen))

    @abstractmethod
    def compute(self, state: Any, step: Step) -> bool:
        """Whether to compute at this step. Asked at every step after the first.

        Reads at most one number from the device, by `worst(values, step.groups)`, so that the ranks that run
        a denoiser together decide alike.
        """

    def observe(self, state: Any, step: Step, output: Tensor) -> None:
        """Notes what left the site at a computed step, with shape (B, *). Reads nothing from the device."""

    def verify(self, state: Any, step: Step, found: Tensor, expected: Tensor) -> None:
        """Notes how good a forecast was at a skipped step, where blocks after the site always run.

        Arguments:
            found: What these blocks added on top of the forecast, with shape (B, *).
            expected: The forecast of what they add, with shape (B, *).
        """

    @classmethod
    def fit(cls, profile: Profile, *, budget: float = 0.5, **params: Any) -> Self:
        """Returns the policy that computes about `budget` of the steps of a profile, replayed on it.

        Arguments:
            profile: What was measured on calibration prompts.
            budget: The fraction of the steps that are computed, in (0, 1].
            params: Fields of the policy that are not fitted.
        """
        return fit_threshold(lambda value: cls(**{cls.fitted: value}, **params), profile, budget)


class StaticPolicy(Policy):
    """A policy that depends on the numbers and times of the steps alone."""

    static: ClassVar[bool] = True
    state: ClassVar[Any] = dict

    @abstractmethod
    def steps(self, times: tuple[float, ...], gear: int = 0) -> list[int]:
        """Returns the numbers of the computed steps on a grid of N times, rising; of one plan of several."""

    def compute(self, state: dict[int, set[int]], step: Step) -> bool:
        if step.gear not in state:
            state[step.gear] = set(self.steps(step.times, step.gear))
        return step.index in state[step.gear]
