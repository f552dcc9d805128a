"""The interface of a forecast: what to use instead of calling the denoiser."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from ..clock import Step

__all__ = ["Forecast", "Weights"]


@dataclass(frozen=True)
class Weights:
    """A linear combination of what is known at a skipped step at no cost.

    Arguments:
        past: The weights of the last computed outputs, newest first.
        x: The weight of the latents before the step.
        x0: The weight of the latents before the first step.
    """

    past: tuple[float, ...]
    x: float = 0.0
    x0: float = 0.0


class Forecast(ABC, BaseModel):
    """Gives the weights of the outputs computed so far, at a step that is skipped. Frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str

    @property
    @abstractmethod
    def depth(self) -> int:
        """How many computed outputs the runtime has to keep."""

    @abstractmethod
    def weights(self, step: Step) -> Weights:
        """Returns at most `depth` weights, and at most one for each step in `step.past`."""
