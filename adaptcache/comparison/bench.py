"""The bench of a comparison: runs methods, chooses their settings and counts what they cost."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..evaluation.metrics import psnr, ssim, summary
from ..profiling.measure import Progress
from ..runs import Call, Prompt
from .baselines.base import Case, Knobs, Peer
from .line import Cost, Line
from .scorer import Shows
from .sweep import Tried, between
from .trial import BlockCounter, Trial, kept, latent_error, run

__all__ = ["Bench"]

logger = logging.getLogger(__name__)

NEARLY = 1.01  # a method that runs a little around the blocks at every step is not sent a whole call down
HALVINGS = 2  # settings tried between two that lie on both sides of a budget


class Bench:
    """Runs methods on held-out prompts, and on calibration prompts to choose their settings."""

    def __init__(
        self, case: Case, held_out: Sequence[Prompt], first: int, batch_size: int, progress: Progress,
        shows: Shows | None = None,
    ) -> None:  # fmt: skip
        self.case, self.held_out, self.first = case, held_out, first
        self.batch_size, self.progress, self.shows = batch_size, progress, shows
        self.fulls: dict[int, Trial] = {}  # by batch size, for their time
        self.full = self.full_run(batch_size)
        self.baseline = kept(case.pipe, case.call, held_out[0])
        self.call_work = self.full.work / len(held_out) / case.call.steps
        self.truth: list[np.ndarray] | None = None  # images of many steps
        self._swept_full: Trial | None = None
        self.images: dict[str, list[np.ndarray]] = {"full run": self.full.images}

    def measured(self, name: str, call: Call, visitor: Any = None, batch_size: int | None = None) -> Trial:
        """Runs the held-out prompts."""
        return run(
            self.case.pipe, call, self.held_out, visitor, batch_size=batch_size or self.batch_size,
            first=self.first, progress=lambda done: self.progress(name, done, len(self.held_out)),
        )  # fmt: skip

    def full_run(self, batch_size: int) -> Trial:
        """Returns the full run with so many prompts in a run."""
        if batch_size not in self.fulls:
            call, pipe = self.case.call, self.case.pipe
            run(pipe, call, self.held_out[:batch_size], batch_size=batch_size)  # first runs are slow
            self.fulls[batch_size] = self.measured("full run", call, batch_size=batch_size)
        return self.fulls[batch_size]

    def many_steps(self, factor: int) -> None:
        """Runs the held-out prompts with many times the steps: little is left of the sampler's error."""
        call = Call(self.case.call.steps * factor, self.case.call.arguments, self.case.call.seed)
        self.truth = self.measured(f"{call.steps} steps", call).images

    def size(self, peer: Peer) -> int:
        """Returns how many prompts a run of a peer has."""
        return 1 if peer.alone else self.batch_size

    def calls(self, trial: Trial, full: Trial) -> float:
        """Returns the work of a trial in whole denoiser calls a run."""
        return self.case.call.steps * trial.work / full.work

    def line(
        self, method: str, budget: float, trial: Trial, call: Call, visitor: Any, knobs: Knobs = {},  # noqa: B006
        tried: int = 0, batch_size: int | None = None,
    ) -> Line:  # fmt: skip
        """Returns what a trial on the held-out prompts is worth."""
        pairs = list(zip(trial.images, self.full.images, strict=True))
        pictures = pairs[0][0].ndim >= 3 and importlib.util.find_spec("torchmetrics") is not None
        calls, each = self.calls(trial, self.full), [psnr(a, b) for a, b in pairs]
        self.images[f"{method} {budget:g}"] = trial.images
        full = self.full_run(batch_size or self.batch_size)
        more = kept(self.case.pipe, call, self.held_out[0], visitor) - self.baseline
        truth = [psnr(a, b) for a, b in zip(trial.images, self.truth or [], strict=False)]
        return Line(
            method, budget, calls, calls * self.case.blocks, summary(each),
            summary([ssim(a, b) for a, b in pairs]) if pictures else None, latent_error(trial, self.full),
            summary(truth) if truth else None,
            self.shows(self.held_out, trial.images) if self.shows else None,
            full.loop / trial.loop, max(0, more), each, knobs, tried,
        )  # fmt: skip

    def swept_full(self) -> Trial:
        """Returns the full run of the calibration prompts that settings are tried on."""
        if self._swept_full is None:
            case = self.case
            self._swept_full = run(case.pipe, case.call, case.prompts, batch_size=self.batch_size)
        return self._swept_full

    def sweep(self, peer: Peer, settings: Sequence[Knobs]) -> list[Tried]:
        """Tries settings of a peer on the calibration prompts: calls, decibels and knobs."""
        case, found = self.case, list[Tried]()
        full = self.swept_full()
        for number, knobs in enumerate(settings):
            with peer.applied(case, knobs) as ready:
                trial = run(case.pipe, ready.call, case.prompts, ready.visitor, batch_size=self.size(peer))
            pairs = zip(trial.images, full.images, strict=True)
            quality = float(np.mean([psnr(a, b) for a, b in pairs]))
            found.append((self.calls(trial, full), quality, knobs))
            self.progress(f"{peer.name}, settings", number + 1, len(settings))
        return found

    def chosen(self, peer: Peer, budgets: Sequence[int]) -> tuple[list[Tried], Cost]:
        """Tries a peer's settings, and finer ones around the budgets; says what that cost."""
        self.swept_full()  # serves all
        with BlockCounter(self.case.pipe) as calibration:
            settings = peer.settings(self.case)
        with BlockCounter(self.case.pipe) as sweeping:
            found = self.sweep(peer, settings)
            for _ in range(HALVINGS if peer.fine else 0):
                found += self.sweep(peer, between(found, peer.fine, budgets))
        own = {"calibration": calibration.work / self.call_work} if calibration.work else {}
        return found, Cost(peer.name, own, sweeping.work / self.call_work, len(found))

    def lines(self, peer: Peer, budgets: Mapping[float, int]) -> tuple[list[Line], Cost | None]:
        """Returns a line for each budget, with a note where the method does not run here, or breaks."""
        if why := peer.missing(self.case):
            return [Line(peer.name, budget, note=why) for budget in budgets], None
        try:
            return self.best(peer, budgets)
        except Exception as error:  # another's code on this model: the other methods are to go on
            logger.warning("%s broke", peer.name, exc_info=True)
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            return [Line(peer.name, budget, note=f"broke: {reason}") for budget in budgets], None

    def best(self, peer: Peer, budgets: Mapping[float, int]) -> tuple[list[Line], Cost]:
        """Returns a line for each budget: the best setting at or below it, on the held-out prompts.

        The baseline gets all the calls there are, whatever calibration prompts say.
        """
        lines = list[Line]()
        found, cost = self.chosen(peer, list(budgets.values()))
        for budget, calls in budgets.items():
            fits = [entry for entry in found if entry[0] <= calls * NEARLY]
            if not fits:
                least = min(entry[0] for entry in found)
                note = f"no setting at or below {calls} calls; the least is {least:.1f}"
                lines.append(Line(peer.name, budget, tried=len(found), note=note))
                continue
            best = max(fits, key=lambda entry: entry[0] if peer.baseline else entry[1])
            knobs, size = best[2], self.size(peer)
            with peer.applied(self.case, knobs) as ready:
                trial = self.measured(f"{peer.name} {budget:g}", ready.call, ready.visitor, size)
                line = self.line(peer.name, budget, trial, ready.call, ready.visitor, knobs, len(found), size)
            lines.append(line)
        return lines, cost
