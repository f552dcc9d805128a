"""The bench of a comparison: runs methods, chooses their settings and counts what they cost."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..call import Call, Prompt
from ..metrics import psnr, ssim, summary
from .peers import Case, Knobs, Peer
from .trial import Trial, latent_error, run

__all__ = ["Bench", "Line", "Progress"]

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
