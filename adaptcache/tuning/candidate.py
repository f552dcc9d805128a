"""The search space: which steps are computed and what a forecast may use."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from ..forecasts.matched import Feature

FEATURES: dict[str, tuple[Feature, ...]] = {
    "past_x+x+x0": ("past_x", "past_c", "x", "x0"),  # what a pipeline does not have is left out
    "past_x+x": ("past_x", "x"), "x": ("x",), "x0": ("x0",), "none": (),
}  # fmt: skip
MOVES = {"shift": 0.55, "shift two": 0.15, "swap": 0.1, "history": 0.05, "features": 0.04, "ridge": 0.11}
SPACE: dict[str, list[Any]] = {
    "origin": ["calibrate", *MOVES],
    "history": [1, 2, 3, 4, 5, 6], "features": list(FEATURES),
    "ridge": [1e-9, 1e-8, 1e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 1e-2, 1e-1],
}  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """A plan (the computed steps, rising from 0), what its forecast may use, and how it was found."""

    plan: tuple[int, ...]
    history: int = 4
    features: str = "past_x+x+x0"
    ridge: float = 1e-5
    origin: str = field(default="calibrate", compare=False)

    @classmethod
    def suggest(cls, trial: Any, steps: int) -> Self:
        """Returns the candidate of a trial of optuna, or of a finished one."""
        calls = trial.suggest_int("calls", 1, steps)
        plan = {0, *(trial.suggest_int(f"call {k}", 1, steps - 1) for k in range(1, calls))}
        rest = {name: trial.suggest_categorical(name, values) for name, values in SPACE.items()}
        return cls(tuple(sorted(plan)), **rest)

    @property
    def params(self) -> dict[str, Any]:
        """The parameters that `suggest` asks for."""
        calls = {f"call {k}": step for k, step in enumerate(self.plan)}
        return {**asdict(self), **calls, "calls": len(self.plan)}


def leaders(trials: Sequence[Any], calls: int) -> list[Any]:
    """Returns the completed trials with so many calls, the best first."""
    known = [one for one in trials if one.state.name == "COMPLETE" and one.params["calls"] == calls]
    return sorted(known, key=lambda trial: (-trial.value, trial.number))
