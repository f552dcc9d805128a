"""The interface of a policy: when to compute."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from pydantic import BaseModel, ConfigDict

from ..clock import Step

__all__ = ["Policy"]


class Policy(ABC, BaseModel):
    """Decides at which steps the denoiser is called.

    A policy is frozen. What changes during a run is a small plain object, made by `init` and held by
    the runtime alone. Step 0 is always computed, whatever the policy says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str

    def init(self, times: tuple[float, ...]) -> Any:
        """Returns the state of a new run on a grid of times with shape (N,)."""
        return None

    @abstractmethod
    def compute(self, state: Any, step: Step) -> bool:
        """Whether to call the denoiser at this step."""
