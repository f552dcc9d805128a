"""Compares schedules with other methods: same prompts, noise, grid and dtype, in one process.

Every method is given its best chance. All its settings are tried on calibration prompts, and for each
budget the best one that stays at or below it is measured on held-out prompts.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .calibrate import Measurement, calls_for, fitted, measure
from .call import Call, Prompt
from .metrics import psnr, ssim, summary
from .peers import PEERS, Case, Knobs, Peer
from .policies.plan import Plan
from .record import twin
from .runtime import Runner
from .schedule import Schedule
from .store import Store
from .trial import Trial, latent_error, run

__all__ = ["OURS", "Comparison", "Line", "compare", "methods_of"]

OURS = "adaptcache"
Progress = Callable[[str, int, int], None]  # stage, done, of


@dataclass(frozen=True)
class Line:
    """What a method reached at a budget; with a `note` instead of numbers where it did not run.

    Arguments:
        method: Its name.
        budget: The fraction of the denoiser calls that it was allowed.
        calls: Denoiser calls it made in a run: its block calls over the blocks.
        blocks: Block calls it made in a run; a block of which a part was skipped counts in part.
        psnr: Decibels of decoded images against the full run, mean and 5th percentile over prompts.
        ssim: The same for structural similarity; None without the extra `metrics`.
        latent: Distance of the final latents from the full run's, relative to their length.
        speed: How many times faster than the full run, in the denoising loop.
        knobs: The setting that was best on the calibration prompts.
        tried: How many settings were tried.
        note: Why there are no numbers.
    """

    method: str
    budget: float
    calls: float | None = None
    blocks: float | None = None
    psnr: dict[str, float] | None = None
    ssim: dict[str, float] | None = None
    latent: float | None = None
    speed: float | None = None
    knobs: Knobs = field(default_factory=dict)
    tried: int = 0
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """The lines of all methods, and the images behind them.

    Arguments:
        steps: Steps of the full run.
        held_out: Prompts everything was measured on.
        swept: Calibration prompts the settings were tried on.
        lines: One for each budget and method.
        images: Decoded images of the full run, under "full run", and of each method and budget.
        schedules: Our schedules, by budget.
    """

    steps: int
    held_out: int
    swept: int
    lines: list[Line]
    images: dict[str, list[np.ndarray]]
    schedules: dict[float, Schedule]

    def data(self) -> dict[str, Any]:
        """Returns all numbers as plain values."""
        return {
            "steps": self.steps, "held_out": self.held_out, "swept": self.swept,
            "lines": [{**asdict(line), "knobs": dict(line.knobs)} for line in self.lines],
        }  # fmt: skip


def methods_of(names: Sequence[str]) -> list[str]:
    """Returns the methods with these names, all of them where none is given.

    Raises:
        LookupError: There is no such method.
    """
    known = [OURS, *PEERS]
    if unknown := sorted(set(names) - set(known)):
        raise LookupError(f"no method {', '.join(unknown)}; there are {', '.join(known)}")
    return [name for name in known if not names or name in names]


class Bench:
    """Runs methods on held-out prompts, and on calibration prompts to choose their settings."""

    def __init__(
        self, case: Case, held_out: Sequence[Prompt], first: int, batch_size: int, progress: Progress
    ) -> None:
        self.case, self.held_out, self.first = case, held_out, first
        self.batch_size, self.progress = batch_size, progress
        run(case.pipe, case.call, held_out[:batch_size], batch_size=batch_size)  # first runs are slow
        self.full = self.measured("full run", case.call)
        self.swept_full: Trial | None = None
        self.images: dict[str, list[np.ndarray]] = {"full run": self.full.images}

    def measured(self, name: str, call: Call, visitor: Any = None) -> Trial:
        """Runs the held-out prompts."""
        return run(
            self.case.pipe, call, self.held_out, visitor, batch_size=self.batch_size, first=self.first,
            progress=lambda done: self.progress(name, done, len(self.held_out)),
        )  # fmt: skip

    def calls(self, trial: Trial, full: Trial) -> float:
        """Returns the work of a trial in whole denoiser calls a run."""
        return self.case.call.steps * trial.work / full.work

    def line(self, method: str, budget: float, trial: Trial, knobs: Knobs, tried: int) -> Line:
        """Returns what a trial on the held-out prompts is worth."""
        pairs = list(zip(trial.images, self.full.images, strict=True))
        pictures = pairs[0][0].ndim >= 3 and importlib.util.find_spec("torchmetrics") is not None
        calls = self.calls(trial, self.full)
        self.images[f"{method} {budget:g}"] = trial.images
        return Line(
            method, budget, calls, calls * self.case.blocks,
            summary([psnr(a, b) for a, b in pairs]),
            summary([ssim(a, b) for a, b in pairs]) if pictures else None,
            latent_error(trial, self.full), self.full.loop / trial.loop, knobs, tried,
        )  # fmt: skip

    def sweep(self, peer: Peer) -> list[tuple[float, float, Knobs]]:
        """Tries all settings of a peer on the calibration prompts: calls, decibels and knobs."""
        case = self.case
        if self.swept_full is None:
            self.swept_full = run(case.pipe, case.call, case.prompts, batch_size=self.batch_size)
        found, settings = list[tuple[float, float, Knobs]](), peer.settings(case)
        for number, knobs in enumerate(settings):
            with peer.applied(case, knobs) as ready:
                trial = run(case.pipe, ready.call, case.prompts, ready.visitor, batch_size=self.batch_size)
            pairs = zip(trial.images, self.swept_full.images, strict=True)
            quality = float(np.mean([psnr(a, b) for a, b in pairs]))
            found.append((self.calls(trial, self.swept_full), quality, knobs))
            self.progress(f"{peer.name}, settings", number + 1, len(settings))
        return found

    def lines(self, peer: Peer, budgets: Mapping[float, int]) -> list[Line]:
        """Returns a line for each budget: the best setting at or below it, on the held-out prompts."""
        if why := peer.missing(self.case):
            return [Line(peer.name, budget, note=why) for budget in budgets]
        found, lines = self.sweep(peer), list[Line]()
        for budget, calls in budgets.items():
            fits = [entry for entry in found if entry[0] <= calls + 1e-6]
            if not fits:
                least = min(entry[0] for entry in found)
                note = f"no setting at or below {calls} calls; the least is {least:.1f}"
                lines.append(Line(peer.name, budget, tried=len(found), note=note))
                continue
            knobs = max(fits, key=lambda entry: entry[1])[2]
            with peer.applied(self.case, knobs) as ready:
                trial = self.measured(f"{peer.name} {budget:g}", ready.call, ready.visitor)
            lines.append(self.line(peer.name, budget, trial, knobs, len(found)))
        return lines


def compare(
    pipe: Any,
    call: Call,
    calibration: Sequence[Prompt],
    held_out: Sequence[Prompt],
    budgets: Sequence[float],
    *,
    methods: Sequence[str] = (),
    sweep_on: int = 8,
    batch_size: int = 1,
    fit_batch: int = 1,
    store: Store | None = None,
    progress: Progress = lambda stage, done, of: None,
) -> Comparison:
    """Measures our schedules and other methods at the same budgets.

    Arguments:
        pipe: A diffusers pipeline; it is not changed.
        call: How to call it in full.
        calibration: Prompts that schedules are fitted on, and settings of other methods chosen on.
        held_out: Prompts that everything is measured on.
        budgets: Fractions of the denoiser calls.
        methods: Names of methods; none means all.
        sweep_on: Try settings on at most this many calibration prompts.
        batch_size: Prompts in a run. Some methods decide for a batch, and do worse on large ones.
        fit_batch: Prompts in a run while our schedules are fitted.
        store: Where profiles are kept.
        progress: Told the stage, what is done and of how much.
    """
    names = methods_of(methods)
    allowed = {budget: calls_for(call.steps, budget) for budget in budgets}
    own, schedules, plans = twin(pipe), dict[float, Schedule](), dict[int, list[int]]()
    if OURS in names:
        given = measure(pipe, call, calibration, batch_size=fit_batch, store=store, progress=progress)
        schedules = _schedules(pipe, call, calibration, given, allowed, fit_batch, progress)
        for budget, schedule in schedules.items():
            policy = schedule.rules[0].policy
            assert isinstance(policy, Plan)
            plans[allowed[budget]] = policy.steps(schedule.grid.times)
    case = Case(own, call, tuple(allowed.values()), calibration[:sweep_on], plans)
    bench = Bench(case, held_out, len(calibration), batch_size, progress)
    lines = [bench.line("full run", 1.0, bench.full, {}, 0)]
    for budget, schedule in schedules.items():
        trial = bench.measured(f"{OURS} {budget:g}", call, Runner(schedule, False, 0))
        lines.append(bench.line(OURS, budget, trial, {"plan": plans[allowed[budget]]}, 0))
    for name in names:
        if name != OURS:
            lines += bench.lines(PEERS[name], allowed)
    order = {budget: place for place, budget in enumerate([1.0, *budgets])}
    lines.sort(key=lambda line: order[line.budget])
    return Comparison(call.steps, len(held_out), len(case.prompts), lines, bench.images, schedules)


def _schedules(
    pipe: Any, call: Call, prompts: Sequence[Prompt], given: Measurement, allowed: Mapping[float, int],
    batch_size: int, progress: Progress,
) -> dict[float, Schedule]:  # fmt: skip
    return {
        budget: fitted(pipe, call, prompts, given, calls, batch_size=batch_size, progress=progress)
        for budget, calls in allowed.items()
    }
