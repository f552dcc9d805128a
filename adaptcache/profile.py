"""What was measured on calibration prompts: statistics, and the reference trajectories."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .errors import ScheduleError
from .files import write_atomically

__all__ = ["Profile"]


@dataclass(frozen=True)
class Profile:
    """Statistics of full runs on P prompts, with N steps.

    Arguments:
        times: The grid, falling, with shape (N,).
        gram: Inner products of the guided outputs u_0 .. u_{N-1} and the latents x_0 .. x_{N-1}, by
            prompt and divided by the mean energy of its outputs, with shape (P, 2N, 2N).
        magnitude: Mean ratio of an output's norms to those of the step before, with shape (P, N).
        change_in: Relative L1 change of the latents from the step before, with shape (P, N).
        change_out: Relative L1 change of the output from the step before, with shape (P, N).
        influence: Squared error of the final latents, relative to their energy, when only step i is
            forecast, over the forecast's squared error: the output-error curve. Measured on the first
            Q <= P prompts, with shape (Q, N).
        about: Where it came from.
    """

    times: np.ndarray
    gram: np.ndarray
    magnitude: np.ndarray
    change_in: np.ndarray
    change_out: np.ndarray
    influence: np.ndarray
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """The number of steps N."""
        return len(self.times)

    @property
    def kernel(self) -> np.ndarray:
        """The mean inner products of the outputs, with shape (N, N)."""
        return np.asarray(self.gram.mean(axis=0)[: self.steps, : self.steps])

    @property
    def sensitivity(self) -> np.ndarray:
        """What a squared error at each step does to the end result, with shape (N,).

        The measured influence, or the squared length of the step where none was measured.
        """
        if len(self.influence):
            return np.asarray(self.influence.mean(axis=0))
        return np.diff(np.append(self.times, 0.0)) ** 2

    def save(self, path: str | Path) -> Path:
        """Writes the profile as safetensors."""
        arrays = {
            f.name: np.ascontiguousarray(getattr(self, f.name)) for f in fields(self) if f.name != "about"
        }
        return write_atomically(path, save(arrays, metadata={"about": json.dumps(self.about)}))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a profile."""
        try:
            with safe_open(str(path), framework="numpy") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}
                about = json.loads((file.metadata() or {}).get("about", "{}"))
            return cls(**arrays, about=about)
        except (SafetensorError, TypeError, ValueError) as error:
            raise ScheduleError(f"{path} is not a profile ({error}); remove it and calibrate again") from None
