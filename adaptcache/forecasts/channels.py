"""HyCa (Zheng et al., 2025), https://arxiv.org/abs/2510.04188: each group of channels has a solver of its own."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import FailFast, Field, model_validator
from torch import Tensor

from ..fitting.kernel import Array
from ..profile import Profile
from ..step import Step
from .adams_bashforth import AdamsBashforth
from .base import Forecast, Known, Weights
from .extrapolate import Extrapolate
from .foca import FoCa
from .hermite import Hermite
from .taylor import Taylor

Solver = Literal["reuse", "taylor-1", "taylor-2", "adams-bashforth", "bdf", "hermite"]
SOLVERS: dict[Solver, Forecast] = {
    "reuse": Extrapolate(order=0), "taylor-1": Taylor(order=1), "taylor-2": Taylor(order=2),
    "adams-bashforth": AdamsBashforth(order=2), "bdf": FoCa(), "hermite": Hermite(order=2),
}  # fmt: skip


class Channels(Forecast):
    """Forecasts each channel by the solver of its group: those of other methods, Runge-Kutta left out.

    The last dimension of tokens (B, L, C) has the channels, the second one of (B, C, *).
    """

    type: Literal["channels"] = "channels"
    # by channel, the number of its solver; a single number is for all of them
    groups: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1, max_length=4096), FailFast()]
    solvers: Annotated[tuple[Solver, ...], Field(min_length=1, max_length=64)]  # by group

    @model_validator(mode="after")
    def _groups_have_solvers(self) -> Self:
        if max(self.groups) >= len(self.solvers):
            raise ValueError(f"a channel has the group {max(self.groups)}, and there are {len(self.solvers)} solvers")
        return self

    @property
    def depth(self) -> int:
        return max(SOLVERS[name].depth for name in self.solvers)

    def weights(self, step: Step) -> Weights:
        """Returns the weights of the first channel's group."""
        return SOLVERS[self.solvers[self.groups[0]]].weights(step)

    def combine(self, known: Known, step: Step) -> Tensor:
        if len(self.groups) == 1:
            return super().combine(known, step)
        last = known.past[0]
        axis = last.ndim - 1 if last.ndim == 3 else 1
        if last.shape[axis] != len(self.groups):
            raise ValueError(f"groups are of {len(self.groups)} channels, the output has {last.shape[axis]}")
        table = np.array([weights_of(name, step, len(known.past)) for name in self.solvers])[list(self.groups)]
        shape = [-1 if at == axis else 1 for at in range(last.ndim)]
        columns = torch.from_numpy(table).float().to(last.device).T
        total = torch.zeros_like(last, dtype=torch.float32)
        for value, column in zip(known.past, columns, strict=False):
            total += value.float() * column.view(shape)
        return total.to(last.dtype)

    @classmethod
    def fit(cls, profile: Profile, plan: Sequence[int], **params: Any) -> Self:
        """Returns one group with the solver of least error; groups take outputs by channel."""
        best = best_solver(profile.kernel, profile.sensitivity, plan)
        return cls(**{"groups": (0,), "solvers": (best,), **params})


def weights_of(name: Solver, step: Step, count: int) -> Array:
    """Returns the weights of `count` outputs, newest first; zero beyond those that a solver uses."""
    given = SOLVERS[name].weights(step).past
    return np.pad(np.array(given), (0, max(0, count - len(given))))[:count]


def best_solver(gram: Array, sensitivity: Array, plan: Sequence[int]) -> Solver:
    """Returns the solver whose forecasts at the steps that a plan skips have the least weighted squared error.

    From inner products of outputs, with shape (N, N), and sensitivities, with shape (N,).
    """
    n, errors = len(gram), dict[Solver, float]()
    times = tuple(1 - i / n for i in range(n))
    for name in SOLVERS:
        total = 0.0
        for i in sorted(set(range(n)) - set(plan)):
            past = tuple(c for c in reversed(plan) if c < i)
            given = SOLVERS[name].weights(Step(i, times, past)).past
            places, signed = [i, *past[: len(given)]], np.array([-1.0, *given])
            total += float(sensitivity[i] * (signed @ gram[np.ix_(places, places)] @ signed))
        errors[name] = total
    return min(errors, key=errors.__getitem__)


def group_channels(outputs: Array, sensitivity: Array, plan: Sequence[int], labels: Sequence[int]) -> Channels:
    """Returns the forecast of groups of channels, each with its best solver.

    From what each channel was at each step of full runs, with shape (N, C, M), and the group of each channel.
    """
    count, solvers = max(labels) + 1, list[Solver]()
    for group in range(count):
        own = outputs[:, np.array(labels) == group].reshape(len(outputs), -1)
        solvers.append(best_solver(own @ own.T, sensitivity, plan))
    return Channels(groups=tuple(map(int, labels)), solvers=tuple(solvers))
