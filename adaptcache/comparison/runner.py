"""Runs the methods of a comparison: chooses their settings, measures them, counts what they cost."""

import functools
import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy import stats

from ..evaluation.generate import TimedHook
from ..evaluation.metrics import psnr_each, score_images, ssim_of, summary
from ..hooks import StepHook
from ..runs import PromptSet, Setup
from .baselines import Baseline, Case, Params
from .scorer import CaptionScore
from .trial import MacCounter, Trial, latent_error, measure_memory, run_trial

logger = logging.getLogger(__name__)

TOLERANCE = 1.01  # a method that runs a little around the blocks at every step is not sent a whole call down
FULL = "full run"
HALVINGS = 2  # settings tried between two that lie on both sides of a budget
PAIRS = (3, 8)  # runs timed in turn with the full run, at least and at most
UNPROBED = " (probe not counted)"


@dataclass(frozen=True)
class MethodResult:
    """What a method reached at a budget; with a `note` instead of numbers where it did not run."""

    method: str
    budget: float  # the fraction of the denoiser calls that it was allowed
    calls: float | None = None  # denoiser calls it made in a run: its block calls over the blocks
    blocks: float | None = None  # block calls it made in a run; a block of which a part was skipped counts in part
    # decibels of decoded images against the full run, mean and 5th percentile over prompts
    psnr: dict[str, float] | None = None
    ssim: dict[str, float] | None = None  # the same for structural similarity; None without the extra `metrics`
    latent: float | None = None  # distance of the final latents from the full run's, relative to their length
    exact: dict[str, float] | None = None  # decibels of decoded images against a run of many steps
    caption_score: float | None = None  # how well images show what their captions say: a share of them, or a CLIPScore
    # how many times faster than the full run, in the denoising loop: the median of runs in turn
    speed: float | None = None
    # bytes kept from step to step, at the most, more than the full run keeps; for one prompt
    memory: int | None = None
    each: list[float] = field(default_factory=list)  # decibels against the full run, by prompt
    params: Params = field(default_factory=dict)  # the setting that was best on the calibration prompts
    tried: int = 0  # how many settings were tried
    note: str = ""  # why there are no numbers
    unprobed: float | None = None  # denoiser calls if the first block cost nothing
    # calls of settings that made more than they were allowed on the held-out prompts, and that this one was taken
    # instead of
    over_budget: tuple[float, ...] = ()
    # how many decibels our schedule is ahead, over prompts: "mean", and "ci95", the half width of its 95 % confidence
    # interval
    lead: dict[str, float | None] | None = None


@dataclass(frozen=True)
class Cost:
    """What a method cost before its first use, for all budgets together, in denoiser calls."""

    method: str
    calibration: dict[str, float]  # calls for what it is fitted on, by stage; one call serves one prompt
    settings: float = 0.0  # calls for choosing its setting
    tried: int = 0  # how many settings were tried


@dataclass(frozen=True)
class Tried:
    """A setting on the calibration prompts."""

    calls: float  # denoiser calls in a run
    unprobed: float  # those if the first block cost nothing
    quality: float  # mean decibels against the full run
    params: Params

    def count(self, probe: bool = True) -> float:
        """Returns the calls, with the first block counted or not."""
        return self.calls if probe else self.unprobed


def settings_between(found: Sequence[tuple[float, Params]], threshold: str, budgets: Sequence[int]) -> list[Params]:
    """Returns settings in the middle, on a log scale, of the two nearest to each budget in calls on both sides.

    More of the threshold means fewer calls.
    """
    families: dict[str, list[tuple[float, Params]]] = {}
    for calls, params in found:
        rest = repr(sorted((key, value) for key, value in params.items() if key != threshold))
        families.setdefault(rest, []).append((calls, params))
    new: dict[str, Params] = {}
    for entries in families.values():
        for budget in budgets:
            below = [params[threshold] for calls, params in entries if calls <= budget + 1e-6]
            above = [params[threshold] for calls, params in entries if calls > budget + 1e-6]
            over = [value for value in above if below and value < min(below)]
            if below and over:
                value = math.sqrt(min(below) * max(over))
                params = {**entries[0][1], threshold: float(f"{value:.4g}")}
                new[repr(params)] = params
    return list(new.values())


class ComparisonRunner:
    """Runs methods on held-out prompts (`prompts`), and on calibration prompts to choose their settings."""

    def __init__(self, case: Case, prompts: PromptSet, caption_score: CaptionScore | None = None) -> None:
        self.case, self.prompts, self.caption_score = case, prompts, caption_score
        self.setup = case.setup
        self.full = run_trial(self.setup, prompts, stage=FULL)
        self.full_memory = measure_memory(self.setup, prompts[:1])
        self.call_work = self.full.work / len(prompts) / case.steps
        self.exact: list[np.ndarray] = []  # images of many steps
        self.images: dict[str, list[np.ndarray]] = {}

    @functools.cached_property
    def calibration_full(self) -> Trial:
        """The full run of the calibration prompts."""
        return run_trial(self.setup, self.case.prompts)

    def count_calls(self, trial: Trial, full: Trial) -> tuple[float, float]:
        """Returns a trial's work in denoiser calls a run: all of it, and without the first block."""
        rest = full.work - full.probe  # nothing where the denoiser has one block
        calls = trial.work / full.work
        unprobed = (trial.work - trial.probe) / rest if rest else calls
        return self.case.steps * calls, self.case.steps * unprobed

    def setup_for(self, baseline: Baseline) -> Setup:
        """Returns how a baseline is run: some have one prompt in a run."""
        return replace(self.setup, batch_size=1) if baseline.per_prompt else self.setup

    def run(self, baseline: Baseline, params: Params, prompts: PromptSet, stage: str = "") -> Trial:
        """Runs a baseline with a setting."""
        with baseline.apply(self.case, params) as ready:
            return run_trial(replace(self.setup_for(baseline), call=ready.call), prompts, ready.hook, stage)

    # The settings

    def try_settings(self, baseline: Baseline, settings: Sequence[Params]) -> list[Tried]:
        """Tries settings of a baseline on the calibration prompts."""
        full, found = self.calibration_full, list[Tried]()
        for number, params in enumerate(settings):
            trial = self.run(baseline, params, self.case.prompts)
            quality = np.mean(psnr_each(trial.images, full.images))
            calls = self.count_calls(trial, full)
            found.append(Tried(*calls, float(np.nan_to_num(quality, nan=-math.inf)), params))
            self.setup.progress(f"{baseline.name}, settings", number + 1, len(settings))
        return found

    def choose_settings(self, baseline: Baseline, budgets: Sequence[int]) -> tuple[list[Tried], Cost]:
        """Tries a baseline's settings, and finer ones around the budgets; returns them and what that cost."""
        _ = self.calibration_full  # serves all, and counts for none
        with MacCounter(self.case.pipe) as calibration:
            settings = baseline.propose(self.case)
        with MacCounter(self.case.pipe) as trying:
            found = self.try_settings(baseline, settings)
            for _ in range(HALVINGS if baseline.threshold else 0):
                between: dict[str, Params] = {}
                for counted in (True, False)[: 1 + baseline.probes]:
                    calls = [(one.count(counted), one.params) for one in found]
                    finer = settings_between(calls, baseline.threshold, budgets)
                    between |= {repr(params): params for params in finer}
                found += self.try_settings(baseline, list(between.values()))
        own = {"calibration": calibration.work / self.call_work} if calibration.work else {}
        return found, Cost(baseline.name, own, trying.work / self.call_work, len(found))

    # The results

    def measure(self, baseline: Baseline, budgets: Mapping[float, int]) -> tuple[list[MethodResult], Cost | None]:
        """Returns a result for each budget, with a note where the method does not run here, or breaks.

        Methods with a probe have two where another setting is the best if the probe costs nothing.
        """
        name, results = baseline.name, list[MethodResult]()
        if obstacle := baseline.find_obstacle(self.case):
            return [MethodResult(name, budget, note=obstacle) for budget in budgets], None
        try:
            found, cost = self.choose_settings(baseline, list(budgets.values()))
            for budget, calls in budgets.items():
                results.append(self.measure_best(baseline, budget, calls, found))
                if baseline.probes and pick(baseline, found, calls) != pick(baseline, found, calls, False):
                    results.append(self.measure_best(baseline, budget, calls, found, False))
        except Exception as error:  # another's code on this model: the other methods are to go on
            logger.warning("%s broke", name, exc_info=True)
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            return [MethodResult(name, budget, note=f"broke: {reason}") for budget in budgets], None
        return results, cost

    def measure_best(
        self, baseline: Baseline, budget: float, calls: int, found: Sequence[Tried], counted: bool = True
    ) -> MethodResult:
        """Measures the best setting at or below a budget on the held-out prompts, with the probe `counted` or not.

        A setting that makes more calls there than it is allowed gives way to the best of those with fewer.
        """
        name, over, left = baseline.name + UNPROBED * (not counted), list[float](), found
        while best := pick(baseline, left, calls, counted):
            trial = self.run(baseline, best.params, self.prompts, f"{name} {budget:g}")
            made = self.count_calls(trial, self.full)[not counted]
            if made <= calls * TOLERANCE:
                result = self.measure_setting(baseline, budget, best.params, trial, name)
                return replace(result, tried=len(found), over_budget=tuple(over))
            over.append(made)
            left = [one for one in left if one.count(counted) < best.count(counted)]
        why = "over budget on the held-out prompts:" if over else "no setting at or below"
        least = min(over or (one.count(counted) for one in found))
        note = f"{why} {calls} calls; the least is {least:.1f}"
        return MethodResult(name, budget, tried=len(found), note=note, over_budget=tuple(over))

    def measure_setting(
        self, baseline: Baseline, budget: float, params: Params, trial: Trial | None = None, name: str = ""
    ) -> MethodResult:
        """Returns what a setting is worth on the held-out prompts, with its time and memory."""
        name = name or baseline.name
        trial = trial or self.run(baseline, params, self.prompts, f"{name} {budget:g}")
        with baseline.apply(self.case, params) as ready:
            memory = measure_memory(replace(self.setup, call=ready.call), self.prompts[:1], ready.hook)
        result, speed = self.score(name, budget, trial), self.time_pairs(baseline, params)
        return replace(result, params=params, memory=max(0, memory - self.full_memory), speed=speed)

    def score(self, name: str, budget: float, trial: Trial) -> MethodResult:
        """Returns the quality of a trial on the held-out prompts and its calls, and keeps its images."""
        label = name if trial is self.full else f"{name} {budget:g}"
        pairs = list(zip(trial.images, self.full.images, strict=True))
        calls, unprobed = self.count_calls(trial, self.full)
        each = score_images(trial.images, self.full.images, self.prompts.first, label)
        self.images[label] = trial.images
        exact = psnr_each(trial.images, self.exact) if self.exact else []
        return MethodResult(
            name, budget, calls, calls * self.case.blocks, summary(each), ssim_of(pairs),
            latent_error(trial.latents, self.full.latents), summary(exact) if exact else None,
            self.caption_score(self.prompts.prompts, trial.images) if self.caption_score else None,
            speed=1.0, memory=0, each=each, unprobed=unprobed,
        )  # fmt: skip

    def time_pairs(self, baseline: Baseline, params: Params) -> float:
        """Returns how many times faster than the full run a setting is, in the denoising loop.

        The median over pairs of runs in turn, as a busy machine is slower at one time than at another.
        """
        setup = self.setup_for(baseline)
        batches, ratios = list(self.prompts.batches(setup.batch_size)), list[float]()
        for number in range(min(max(len(batches), PAIRS[0]), PAIRS[1])):
            batch = batches[number % len(batches)]
            full = time_loop(setup, batch)
            with baseline.apply(self.case, params) as ready:
                ratios.append(full / time_loop(replace(setup, call=ready.call), batch, ready.hook))
        return statistics.median(ratios)


def time_loop(setup: Setup, batch: PromptSet, hook: StepHook | None = None) -> float:
    """Returns the seconds of a run in the denoising loop."""
    timed = TimedHook(hook)
    setup.run(timed, batch)
    return timed.seconds


def pick(baseline: Baseline, found: Sequence[Tried], calls: int, counted: bool = True) -> Tried | None:
    """Returns the best setting at or below a budget, with the probe counted or not; None where there is none."""
    fitting = [one for one in found if one.count(counted) <= calls * TOLERANCE]
    return max(fitting, key=lambda one: one.calls if baseline.takes_all_calls else one.quality, default=None)


def lead_over(ours: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """Returns our mean lead in decibels over the same prompts, with Student's interval."""
    gaps = np.subtract(ours, other)
    half = stats.t.ppf(0.975, len(gaps) - 1) * stats.sem(gaps) if len(gaps) > 1 else None
    return {"mean": float(gaps.mean()), "ci95": None if half is None else float(half)}
