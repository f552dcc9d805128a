"""L2P (2026), https://arxiv.org/abs/2604.26365: least squares on the kernel of a profile."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, FiniteFloat, PositiveFloat, model_validator

from ..fitting.kernel import fit_open_loop, resample_kernel
from ..profile import Profile
from ..step import NEAR, Step
from .base import Forecast, Weights


class OpenLoop(Forecast):
    """Solves for the weights at each skipped step, from inner products of outputs.

    A `matched` forecast holds for one plan; this one goes with policies that decide during the run. It is
    ridge regression on full runs: errors of earlier forecasts are not foreseen. Exact, but for the
    ridge, where the output is a linear combination of the kept ones in the same way for all prompts.
    """

    type: Literal["open-loop"] = "open-loop"
    times: Annotated[tuple[FiniteFloat, ...], Field(min_length=2, max_length=1024)]  # N falling times
    gram: tuple[tuple[FiniteFloat, ...], ...]  # mean inner products of the outputs at these times, with shape (N, N)
    history: Annotated[int, Field(ge=1, le=6)] = 3  # how many outputs are used
    ridge: PositiveFloat = 1e-6  # pull towards reuse, relative to each output's energy

    @model_validator(mode="after")
    def _square(self) -> Self:
        if len(self.gram) != len(self.times) or any(len(row) != len(self.times) for row in self.gram):
            raise ValueError(f"the kernel of {len(self.times)} times is not square")
        return self

    def weights(self, step: Step) -> Weights:
        known = list(step.past[: self.history])
        gram, here, sources = np.array(self.gram), step.index, known
        same = len(self.times) == len(step.times)
        if not same or max(abs(a - b) for a, b in zip(self.times, step.times, strict=True)) > NEAR:
            wanted = np.array([step.t, *(step.times[i] for i in known)])
            gram = resample_kernel(gram, np.array(self.times), wanted)
            here, sources = 0, list(range(1, len(wanted)))
        return Weights(tuple(map(float, fit_open_loop(gram, here, sources, self.ridge))))

    @classmethod
    def fit(cls, profile: Profile, plan: Sequence[int], **params: Any) -> Self:
        gram = tuple(tuple(map(float, row)) for row in profile.kernel)
        return cls(times=tuple(map(float, profile.times)), gram=gram, **params)
