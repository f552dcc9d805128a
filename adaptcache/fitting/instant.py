"""Instant schedules: plan and weights from theory, without one run of any model.

Trajectory matching (`adaptcache.calibration.match`) follows a plan with calibration prompts and at each step solves
for the weights with which the sampler lands where the full run landed. In the Gaussian worlds of `worlds` that is a
computation of milliseconds: modes and residuals take the part of the prompts. So plans are searched by their own
matched error, in several worlds at once, of which the worst counts: the plans that come out are dense at both ends, as
those that calibration finds on real models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .affine import AffineSampler
from .kernel import Array, solve_ridge
from .plan import rising
from .worlds import PRIOR, World, respond

RIDGE = 1e-6  # pull towards reuse, relative to each feature's energy; residuals hold weights down by themselves
CORRECT_RIDGE = 1e-6  # the same at computed steps, whose own output is at hand
LOOKED_AT = 4  # earlier outputs that an innovation is taken against
EXACT = 1e-10  # relative squared error: nothing is told apart below, rounding in float32 is there too
SKETCH = 6  # random directions that stand for all coordinates of a mode while plans are searched
FINE = 64  # steps: longer grids are planned on a coarser one, and matched in a sketch
TRIED = 500  # plans looked at in a search
GAIN = 1e-3  # of the logarithm of the error: less is no better plan
MORE = 0.12  # of the calls are added where theory does not hold
LEAD = 3.0  # decibels over as many plain steps that have to be expected in each world
MARGIN = 2.0  # decades beyond the worlds: prompts lie up to 0.7 from those of their world, models up to 0.4 above all


@dataclass(frozen=True)
class Toy:
    """W worlds in which a sampler runs, as T coordinates of all their modes.

    A coordinate is what a mode has of one of the independent standard normal numbers that decide a run: the initial
    noise, what the prompt fixes, and the residual. Each is multiplied by the root of its mode's share and of its
    world's emphasis, so inner products over coordinates are expected values over modes, runs and worlds.
    """

    sampler: AffineSampler  # the sampler
    gain: Array  # the data prediction is `gain * latents + shift`; with shape (N, T)
    shift: Array  # with shape (N, T)
    start: Array  # the initial latents, with shape (T,)
    reference: Array  # the latents before each step and after the last of the full run, with shape (N + 1, T)
    first: np.ndarray[Any, np.dtype[np.intp]]  # the number of each world's first coordinate, with shape (W,)
    energy: Array  # of the reference's last latents in each world, with shape (W,)

    def emphasised(self, emphasis: Array) -> Toy:
        """Returns the same worlds where the squared errors in each count so many times."""
        factor = np.sqrt(np.repeat(emphasis, np.diff(np.append(self.first, len(self.start)))))
        parts = {name: getattr(self, name) * factor for name in ("shift", "start", "reference")}
        return replace(self, energy=self.energy * emphasis, **parts)

    def errors(self, latents: Array) -> Array:
        """Returns the squared error of last latents in each world, relative to their energy, with shape (W,)."""
        return np.asarray(np.add.reduceat((latents - self.reference[-1]) ** 2, self.first) / self.energy)

    def output(self, i: int, latents: Array) -> Array:
        """Returns what the model returns at step i, with shape (T,)."""
        own, of_output = self.sampler.data[i]
        return np.asarray(((self.gain[i] - own) * latents + self.shift[i]) / of_output)


@dataclass(frozen=True)
class Matching:
    """The weights of a plan and what they lead to in W worlds."""

    # By step: the weights of the last computed outputs, newest first, then of the latents before the step and before
    # the first. At computed steps the step's own output comes first; empty there if it is used as it is.
    rows: tuple[tuple[float, ...], ...]
    errors: Array  # squared errors of the last latents, relative to their energy, with shape (W,)
    # at each computed step after the first: the innovation as weights of outputs, newest first
    looks: tuple[tuple[float, ...], ...] = ()
    # their expected energy over that of the output, in decades, with shape (K - 1, W)
    innovations: Array = field(default_factory=lambda: np.zeros((0, 0)))


@dataclass(frozen=True)
class Instant:
    """An instant schedule: what to compute, what to use instead, and what theory expects of it."""

    plan: tuple[int, ...]  # the numbers of the computed steps, rising; the first is 0
    matching: Matching
    fewer: Array  # the squared errors of as many plain steps, with shape (W,)
    guidance: float = 1.0  # the scale of classifier-free guidance: energies of what it multiplies grow with its square

    @property
    def lead(self) -> float:
        """Decibels that theory expects over as many plain steps, in the world where that is least."""
        ours, theirs = np.maximum(self.matching.errors, EXACT), np.maximum(self.fewer, EXACT)
        return float(10 * np.log10(theirs / ours).min())

    @property
    def bands(self) -> tuple[tuple[float, float], ...]:
        """The range of innovations that the worlds make likely, in decades, by computed step after the first."""
        room = MARGIN + 2 * np.log10(max(1.0, self.guidance))
        return tuple((float(row.min() - room), float(row.max() + room)) for row in self.matching.innovations)


def build_toy(
    sampler: AffineSampler,
    worlds: Sequence[World] = PRIOR,
    guidance: float = 1.0,
    variance: float = 1.0,
    sketch: int | None = None,
) -> Toy:
    """Returns worlds as coordinates, with the full run, for data of a mean square in the units of the latents.

    As many random directions as `sketch` says stand for all coordinates of a mode; None keeps all, which is exact.
    """
    return build_toys((sampler,), worlds, guidance, variance, sketch)[0]


def build_toys(
    samplers: Sequence[AffineSampler], worlds: Sequence[World], guidance: float, variance: float, sketch: int | None
) -> list[Toy]:
    """Returns worlds as coordinates with the full runs of samplers that meet the same noise and residuals."""
    random = np.random.default_rng(0)
    alphas, sigmas = (np.concatenate([getattr(one, name)[:-1] for one in samplers]) for name in ("alphas", "sigmas"))
    levels = len(sigmas)
    parts: list[tuple[Array, Array, Array]] = []
    for world in worlds:
        a = respond(world, alphas, sigmas, guidance, variance)
        kinds = len(a.share)
        start = np.zeros((kinds, levels + 2))
        start[:, 0] = np.sqrt(alphas[0] ** 2 * a.chance + sigmas[0] ** 2)
        start[:, 1] = alphas[0] * np.sqrt(a.mean)
        if sketch is None or sketch >= levels + 2:
            shift = np.zeros((levels, kinds, levels + 2))
            shift[:, :, 1] = a.pull * np.sqrt(a.mean)
            shift[:, :, 2:] = a.size[:, :, None] * a.process[:, None, :]
        else:
            # Orthogonal directions keep inner products in the mean, with less scatter than independent ones.
            turned = np.linalg.qr(random.normal(size=(kinds, levels + 2, sketch)))[0] * np.sqrt((levels + 2) / sketch)
            start = np.einsum("kr,krc->kc", start, turned)
            residual = (a.process @ turned[:, 2:].transpose(1, 0, 2).reshape(levels, -1)).reshape(levels, kinds, -1)
            shift = (a.pull * np.sqrt(a.mean))[:, :, None] * turned[None, :, 1] + a.size[:, :, None] * residual
        root = np.sqrt(a.share)[:, None]
        gain = np.repeat(a.gain, start.shape[1], axis=1)
        parts.append((gain, (shift * root).reshape(levels, -1), (start * root).ravel()))
    gain, shift = (np.concatenate([part[k] for part in parts], axis=1) for k in (0, 1))
    start = np.concatenate([part[2] for part in parts])
    first = np.cumsum([0, *(len(part[2]) for part in parts[:-1])])
    toys, begin = [], 0
    for sampler in samplers:
        rows = slice(begin, begin := begin + len(sampler))
        toy = Toy(sampler, gain[rows], shift[rows], start, start[None], first, np.ones(len(first)))
        reference = run_fully(toy)
        toys.append(replace(toy, reference=reference, energy=np.add.reduceat(reference[-1] ** 2, first)))
    return toys


def run_fully(toy: Toy) -> Array:
    """Returns the latents before each step of a full run and after the last, with shape (N + 1, T)."""
    maps, latents = toy.sampler.maps, [toy.start]
    history = np.zeros((len(maps) + 1, len(toy.start)))
    history[0] = toy.start
    for i in range(len(maps)):
        history[i + 1] = toy.output(i, latents[-1])
        latents.append(maps[i, : i + 2] @ history[: i + 2])
    return np.array(latents)


def match(
    toy: Toy, plan: Sequence[int], history: int = 4, correct: bool = True, ridge: float = RIDGE, looks: bool = False
) -> Matching:
    """Fits the weights of a plan by trajectory matching in the toy worlds.

    The steps are gone through in order. Where the denoiser is not called (and where it is, with `correct`), the target
    is the output that would have led from the latents as they are to the full run's next ones; least squares over all
    coordinates give the weights, and the run goes on with them, so later steps undo what earlier ones did wrong.

    Arguments:
        plan: The numbers of the computed steps; 0 is among them.
        history: How many computed outputs are used at most.
        correct: Whether computed steps have weights too, of their own output and what is known besides.
        ridge: Pull towards reuse (the newest output as it is), relative to each feature's energy.
    """
    maps, computed = toy.sampler.maps, set(plan)
    taken = np.zeros((len(maps) + 1, len(toy.start)))  # the first latents, and the outputs the sampler was given
    taken[0] = latents = toy.start
    past: list[Array] = []
    rows: list[tuple[float, ...]] = []
    looked, innovations = list[tuple[float, ...]](), list[Array]()
    for i in range(len(maps)):
        if i in computed:
            output = toy.output(i, latents)
            if looks and past:
                known = np.array(past[:LOOKED_AT])
                weights = solve_ridge(known @ known.T, known @ output, ridge=ridge)
                looked.append((1.0, *map(float, -weights)))
                rest, energy = (np.add.reduceat(v**2, toy.first) for v in (output - weights @ known, output))
                innovations.append(np.log10(np.maximum(rest / energy, EXACT)))
            past = [output, *past[: max(history, LOOKED_AT) - 1]]
        if i in computed and not correct:
            rows.append(())
            taken[i + 1] = past[0]
        else:
            target = (toy.reference[i + 1] - maps[i, : i + 1] @ taken[: i + 1]) / maps[i, i + 1]
            features = np.array([*past[:history], latents, toy.start])
            pull = CORRECT_RIDGE if i in computed else ridge
            weights = solve_ridge(features @ features.T, features @ target, ridge=pull)
            rows.append(tuple(map(float, weights)))
            taken[i + 1] = weights @ features
        latents = maps[i, : i + 2] @ taken[: i + 2]
    return Matching(tuple(rows), toy.errors(latents), tuple(looked), np.array(innovations))


def balance(toy: Toy, plan: Sequence[int], history: int) -> Array:
    """Returns the emphasis with which the sum of the worlds' decibels is the least: the inverse of their errors.

    Without, a rough world would have its say alone. The gradient of the sum of logarithms is that of a sum of squares
    over the errors themselves, so this is iteratively reweighted least squares.
    """
    emphasis = np.ones(len(toy.first))
    for _ in range(2):
        emphasis = 1 / (match(toy.emphasised(emphasis), plan, history).errors + EXACT)
        emphasis /= emphasis.max()
    return emphasis


def spread_steps(steps: int, calls: int, early: float, late: float) -> tuple[int, ...]:
    """Returns computed steps that are denser at both ends, like the power p of (j / K)^p: 1 is even."""
    at = np.linspace(0, 1, 1001)
    density = (at + 0.02) ** (1 / early - 1) * (1.05 - at) ** (1 / late - 1)
    filled = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    # The last call is half a gap before the end: nothing is computed from the last step.
    return rising(np.interp(np.arange(calls) / max(calls - 0.4, 1), filled / filled[-1], at) * (steps - 1), steps)


def search_plan(toy: Toy, calls: int, history: int = 4, tried: int = TRIED) -> tuple[tuple[int, ...], Array]:
    """Searches the plan whose matched run ends closest to the full one, in the world where it ends farthest.

    Starts from plans of several densities at both ends and moves one call at a time, the best two in turn. Returns the
    plan, and the emphasis of the worlds with which it was matched, with shape (W,).
    """
    n = len(toy.sampler)
    emphasis = balance(toy, spread_steps(n, calls, 1.8, 1.5), history)
    heard, known = toy.emphasised(emphasis), dict[tuple[int, ...], float]()

    def cost(plan: tuple[int, ...]) -> float:
        if plan not in known:
            known[plan] = float(np.log(match(heard, plan, history).errors.max() + EXACT))
        return known[plan]

    starts = {spread_steps(n, calls, early, late) for early in (1, 1.4, 2, 3) for late in (1, 1.5, 2.5)}
    ends = []
    for plan in sorted(sorted(starts), key=cost)[:2]:
        before = np.inf
        while len(known) < tried and cost(plan) < before - GAIN:
            before = cost(plan)
            plan = move_calls(slide_calls(plan, n, cost), n, cost)
        ends.append(plan)
    return min(ends, key=cost), emphasis


Cost = Callable[[tuple[int, ...]], float]


def slide_calls(plan: tuple[int, ...], steps: int, cost: Cost) -> tuple[int, ...]:
    """Moves each call, from the last to the second, to where it costs least between its neighbours."""
    for j in range(len(plan) - 1, 0, -1):
        end = plan[j + 1] if j + 1 < len(plan) else steps
        plan = min([plan, *((*plan[:j], at, *plan[j + 1 :]) for at in range(plan[j - 1] + 1, end))], key=cost)
    return plan


def move_calls(plan: tuple[int, ...], steps: int, cost: Cost) -> tuple[int, ...]:
    """Moves each call to the first of some places anywhere in the run where it costs less."""
    for j in range(1, len(plan)):
        free, rest = sorted(set(range(1, steps)) - set(plan)), set(plan) - {plan[j]}
        ways = (tuple(sorted(rest | {at})) for at in free[:: max(1, len(free) // 6)])
        plan = next((way for way in ways if cost(way) < cost(plan) - GAIN), plan)
    return plan


def plan_coarsely(
    sampler: AffineSampler, calls: int, worlds: Sequence[World], guidance: float, variance: float
) -> tuple[int, ...]:
    """Plans a long grid on a coarser one, and takes over how the calls are spread.

    Where each call takes the place of many steps, only their density matters, and neighbouring steps cost the same.
    """
    n = len(sampler)
    thin = sampler.fewer(min(FINE, max(48, 3 * calls)))
    few = max(2, min(len(thin) - 1, round(calls * len(thin) / n))) if calls * 3 > FINE else calls
    plan, _ = search_plan(build_toy(thin, worlds, guidance, variance, SKETCH), few)
    place = np.interp(np.arange(calls) * len(plan) / calls, np.arange(len(plan) + 1), [*plan, len(thin)])
    return rising(place * n / len(thin), n)


def instant(
    sampler: AffineSampler,
    calls: int,
    *,
    guidance: float = 1.0,
    variance: float = 1.0,
    worlds: Sequence[World] = PRIOR,
    history: int = 4,
    plan: Sequence[int] | None = None,
) -> Instant:
    """Makes plan and weights from theory: half a second for 50 steps.

    Arguments:
        sampler: The sampler on the grid of the run; see `build_sampler` and `trace_steps`.
        calls: How many steps call the denoiser.
        guidance: The scale of classifier-free guidance; 1 for none.
        variance: The mean square of the data, in the units of the latents; about 1 for the latents of most models.
        worlds: What may be expected of a model.
        history: How many computed outputs are used at most, 1 to 6.
        plan: The numbers of the computed steps, where they are known; else they are searched.

    Raises:
        ValueError: Numbers of calls or of guidance that cannot be, or a plan that does not begin at 0.

    Example:
        >>> made = instant(build_sampler(np.linspace(1, 0, 29)), 14)
        >>> made.plan, made.matching.rows
    """
    n = len(sampler)
    if not 1 <= calls <= n:
        raise ValueError(f"calls must be in [1, {n}] for {n} steps, got {calls}")
    if not (np.isfinite(guidance) and guidance >= 0):
        raise ValueError(f"guidance has to be a number of 0 or more, got {guidance}; 1 is none")
    if not (np.isfinite(variance) and variance > 0):
        raise ValueError(f"the variance of the data has to be above 0, got {variance}")
    if plan is not None and (len(plan) != calls or plan[0] != 0 or (np.diff(plan) <= 0).any() or plan[-1] >= n):
        raise ValueError(f"a plan of {calls} calls has as many rising step numbers from 0 to {n - 1}, got {plan}")
    if plan is None and n > FINE:
        plan = plan_coarsely(sampler, calls, worlds, guidance, variance)
    if plan is None:
        toy = build_toy(sampler, worlds, guidance, variance, SKETCH)
        plan, _ = search_plan(toy, calls, history)
    found = tuple(map(int, plan))
    toy, few = build_toys((sampler, sampler.fewer(calls)), worlds, guidance, variance, SKETCH if n > FINE else None)
    heard = toy.emphasised(balance(toy, found, history))
    return Instant(found, match(heard, found, history, looks=True), toy.errors(few.reference[-1]), guidance)


def find_instant(sampler: AffineSampler, calls: int, *, lead: float = LEAD, **options: object) -> Instant:
    """Makes the fastest schedule, at most as fast as asked for, that theory expects to hold in every world.

    Arguments:
        calls: The fewest calls.
        lead: Decibels over as many plain steps that are expected in the world where that is least.

    Returns:
        The first that holds of schedules with more and more calls; that with all calls if none does.
    """
    while True:
        made = instant(sampler, calls, **options)  # type: ignore[arg-type]
        if made.lead >= lead or calls >= len(sampler):
            return made
        calls = min(len(sampler), calls + max(1, round(calls * MORE)))
