"""A point of the search space: when to compute, and what to use instead."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from ..calibration.match import Fit
from ..forecasts.matched import Feature

__all__ = ["FEATURES", "ZOO", "Candidate"]

FEATURES: tuple[tuple[Feature, ...], ...] = (("past_x", "x", "x0"), ("past_x", "x"), ("x",), ("x0",), ())
# Forecasts that need no matching, and what their `order` may be.
ZOO: dict[str, range] = {
    "open-loop": range(1, 7),  # the history
    "adams-bashforth": range(1, 6),
    "newton": range(1, 4),
    "taylor": range(1, 4),
    "hermite": range(1, 4),
    "extrapolate": range(0, 3),
}


class Candidate(BaseModel):
    """What a trial tries.

    Arguments:
        plan: The computed steps, rising; the first is 0.
        forecast: "matched", or the name of one that needs no matching.
        history: How many outputs a matched forecast uses.
        features: What it uses besides.
        ridge: How firmly it is held at the open-loop weights.
        order: Of another forecast.
        origin: How it was found, for people.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan: tuple[Annotated[int, Field(ge=0)], ...]
    forecast: str = "matched"
    history: Annotated[int, Field(ge=1, le=6)] = 4
    features: tuple[Feature, ...] = FEATURES[0]
    ridge: FiniteFloat = 1e-5
    order: int = 1
    origin: str = ""

    @property
    def calls(self) -> int:
        """How many steps are computed."""
        return len(self.plan)

    @property
    def fit(self) -> Fit:
        """What a matched forecast may use."""
        return Fit(self.history, self.features, self.ridge)

    @property
    def key(self) -> str:
        """The same for candidates that are the same, however they were found."""
        how = (self.history, self.features, f"{self.ridge:.3g}") if self.forecast == "matched" else self.order
        return f"{self.plan} {self.forecast} {how}"

    def params(self) -> dict[str, Any]:
        """Returns what optuna shows; the plan is an attribute, as it is no number."""
        shown = {"calls": self.calls, "forecast": self.forecast}
        if self.forecast != "matched":
            return {**shown, "order": self.order}
        features = "+".join(self.features) or "none"
        return {**shown, "history": self.history, "features": features, "ridge": self.ridge}

    def suggested(self, trial: Any, steps: int) -> None:
        """Tells a trial of optuna what it tries."""
        trial.suggest_int("calls", 1, steps)
        if trial.suggest_categorical("forecast", ["matched", *ZOO]) != "matched":
            trial.suggest_int("order", 0, 8)
            return
        trial.suggest_int("history", 1, 6)
        trial.suggest_categorical("features", ["+".join(names) or "none" for names in FEATURES])
        trial.suggest_float("ridge", 1e-9, 1.0, log=True)

    def with_(self, **changes: Any) -> Self:
        """Returns a copy with changes."""
        return self.model_copy(update=changes)
