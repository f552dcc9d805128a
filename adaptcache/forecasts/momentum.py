"""FasterCache (Lv et al., 2024), https://arxiv.org/abs/2410.19355, and Gradient-Optimized Cache (Qiu et al., 2025),
https://arxiv.org/abs/2503.05156: the last output and a part of its change.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, FiniteFloat

from ..limits import STEPS
from ..profile import Profile
from ..step import NEAR, Step
from .base import Forecast, Weights


class Momentum(Forecast):
    """Adds `weight` of the difference of the last two outputs to the last one, however far it is away.

    With `fed_back` it does as `FasterCacheConfig` of diffusers does, which counts forecasts as outputs: the
    difference is that of the last two *calls*, computed or not. What a computed output still weighs falls by
    the weight each time, and is left out after `kept`: 0.4 % is left of eight halves. Exact on lines only
    where every second step is skipped and the weight is a half.
    """

    type: Literal["momentum"] = "momentum"
    # how much of the difference; the paper raises it from 0 to 1 in the course of a run
    weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    fed_back: bool = False  # whether forecasts count as outputs
    kept: Annotated[int, Field(ge=2, le=64)] = 8  # how many computed outputs a forecast that is fed back depends on
    inflections: bool = False  # whether a profile tells where the change turns, as Gradient-Optimized Cache has it
    reuse_at: Annotated[tuple[FiniteFloat, ...], Field(max_length=STEPS)] = ()  # times without the difference

    @property
    def depth(self) -> int:
        return self.kept if self.fed_back else 2

    def weights(self, step: Step) -> Weights:
        known = step.past[: self.depth]
        if any(abs(step.t - t) < NEAR for t in self.reuse_at):
            return Weights((1.0,))
        if not self.fed_back or len(known) == 1:
            return Weights((1 + self.weight, -self.weight) if len(known) > 1 else (1.0,))
        rows = np.eye(len(known))
        before = last = rows[-1]
        for index in range(known[-1] + 1, step.index + 1):
            new = rows[known.index(index)] if index in known else last + self.weight * (last - before)
            before, last = last, new
        return Weights(tuple(map(float, last)))

    @classmethod
    def fit(cls, profile: Profile, plan: Sequence[int], **params: Any) -> Self:
        """Returns the forecast; with `inflections`, it reuses where the change of outputs turns from less to more, or
        back.
        """
        if params.get("inflections"):
            turns = np.diff(np.sign(np.diff(profile.change_out.mean(axis=0)[1:])))
            params["reuse_at"] = tuple(float(profile.times[i + 2]) for i in np.flatnonzero(turns))
        return cls(**params)
