"""LazyDiT (Shen et al., 2024), https://arxiv.org/abs/2412.12444: a linear gate on what enters each layer."""

from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import FailFast, Field, FiniteFloat, NonNegativeFloat
from torch import Tensor

from ..limits import FrozenModel
from ..profile import Profile
from ..step import TINY, Signal, Step, worst
from .base import Policy


class Linear(FrozenModel):
    """The gate of one layer."""

    # of each channel of the input; a single one is of how far its root mean square is from that of the first step,
    # relative to that
    weights: Annotated[tuple[FiniteFloat, ...], Field(min_length=1, max_length=4096), FailFast()] = (1.0,)
    bias: FiniteFloat = 0.0


class Gate(Policy):
    """Computes a layer where sigmoid(w x + b) reaches the threshold, with x the mean over what enters, token by token.

    The paper's gates, trained one a layer and step, are one a layer here: what enters is modulated by the time. One
    number is read from the device for each layer and step.
    """

    type: Literal["gate"] = "gate"
    gates: Annotated[tuple[Linear, ...], Field(min_length=1, max_length=4096)]  # by layer, or one for all
    threshold: NonNegativeFloat = 0.5  # higher skips more; 0 computes all

    signal: ClassVar[Signal] = "input"
    state: ClassVar[Any] = list

    def compute(self, state: list[Tensor], step: Step) -> bool:
        gate = self.gates[step.instance if len(self.gates) > 1 else 0]
        return step.x is None or worst(gate_values(gate, step.x, state), step.groups) >= self.threshold

    def observe(self, state: list[Tensor], step: Step, output: Tensor) -> None:
        if not state and step.x is not None:
            state.append(size(step.x))

    @classmethod
    def fit(cls, profile: Profile, *, budget: float = 0.5, **params: Any) -> Self:
        return super().fit(profile, budget=budget, **{"gates": (Linear(),), **params})


def pool(x: Tensor) -> Tensor:
    """Returns the mean of tokens (B, L, D), or of positions (B, D, *), with shape (B, D)."""
    x = x.float()
    return x.flatten(1, -2).mean(1) if x.ndim == 3 else x.flatten(2).mean(2) if x.ndim > 3 else x


def size(x: Tensor) -> Tensor:
    """Returns the root mean square of each sample, with shape (B,)."""
    return x.flatten(1).float().square().mean(1).sqrt()


def gate_values(gate: Linear, x: Tensor, first: list[Tensor]) -> Tensor:
    """Returns the gate of each sample, in (0, 1), with shape (B,)."""
    if len(gate.weights) == 1:
        moved = (size(x) / first[0].clamp_min(TINY) - 1).abs() if first else torch.zeros(len(x), device=x.device)
        return (gate.weights[0] * moved + gate.bias).sigmoid()
    mean = pool(x)
    if mean.shape[1] != len(gate.weights):
        raise ValueError(
            f"a gate is of {len(gate.weights)} channels, and {mean.shape[1]} enter the layer: "
            "it was fitted to another model"
        )
    return (mean @ torch.tensor(gate.weights, device=x.device) + gate.bias).sigmoid()
