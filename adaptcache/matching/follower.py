"""The visitor that follows a plan while its weights are fitted, and what a forecast of it may use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..clock import Step
from ..fitting.kernel import Array
from ..forecasts.history import History
from ..forecasts.matched import Feature, named
from ..gate import Update
from ..policies.look import signals_of
from ..profiling.influence import relative
from ..profiling.statistics import part
from ..profiling.trajectory import Trajectory
from .moments import Moments, moments_of
from .target import target_of

__all__ = ["Fit", "Follower"]


@dataclass(frozen=True)
class Fit:
    """What a forecast may use and how firmly it is held.

    Arguments:
        history: How many computed outputs are used, 1 to 6.
        features: What is used besides, as in `Matched`; "past_x" only where the sampler adds noise, as
            elsewhere it says what the others say.
        ridge: Pull towards the open-loop weights, relative to each feature's energy.
    """

    history: int = 4
    features: tuple[Feature, ...] = ("past_x", "x", "x0")
    ridge: float = 1e-5


class Follower:
    """Follows a plan with one batch of prompts, and meets the others wherever a forecast is due."""

    def __init__(
        self, plan: Sequence[int], fit: Fit, reference: Trajectory, samples: int, first: int = 0,
        looks: Sequence[tuple[float, ...]] = (),
    ) -> None:  # fmt: skip
        self.plan, self.fit, self.reference, self.samples = set(plan), fit, reference, samples
        self.first, self.looks = first, looks
        self.innovations: list[Array] = []  # of each computed step after the first, in decades
        self.errors: list[float] = []  # of the final latents: squared, over the energy of the reference's
        self.meet: Callable[[Moments], Array]

    def begin(self, times: tuple[float, ...]) -> None:
        self.history = History(self.fit.history, "past_x" in self.fit.features)

    def computes(self, step: Step) -> bool:
        return step.index in self.plan

    def update(self, update: Update) -> Tensor:
        if update.computed and update.track == 0 and (before := len(update.step.past)):
            outputs = [update.move.u, *self.history.lines[0].past]
            seen = signals_of([self.looks[before - 1]], outputs)
            self.innovations.append(seen[:, 0].double().cpu().numpy())
        self.history.see(update)
        if update.computed:
            return update.move.u
        index, track = update.step.index, update.track
        target = target_of(update, self.reference.y[track][index])
        if target is None:  # fit the output itself, without undoing earlier errors
            target = self.reference.u[track][index]
        features = self.history.features(update, self.fit.features)
        weights = self.meet(moments_of(update, features, target, self.samples, self.first))
        return self.history.combined(named(weights.tolist(), self.fit.features), update)

    def landed(self, update: Update, y: Tensor) -> None:
        if update.step.index == len(self.reference.times) - 1:
            made, truth = y.cpu(), self.reference.y[update.track][-1]
            parts = ((part(made, k, self.samples), part(truth, k, self.samples)) for k in range(self.samples))
            self.errors += [relative(*pair) for pair in parts]

    def end(self) -> None:
        self.history = History(0)
