"""What gears are worth, and whether certificates keep their word: `python -m benchmarks.gears --cache DIR`.

Runs the demo model by plans that stand alone and by plans that share their first computed steps, on 80
calibration and 260 held-out prompts of mixed difficulty. All is kept in the cache, run by run, so that it can
be stopped and continued. Then it prints

1. for each target, the calls of the cheapest single plan with which 95 % of the held-out prompts reach it, of
   gears, and of an oracle that knows for each prompt the cheapest gear that does (and may miss 5 % as well);
2. how many certificates from random halves of the held-out prompts, and from as many independent draws, claim
   what is not so.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from adaptcache.cache import Cache
from adaptcache.calibration.fit import build_schedule
from adaptcache.calibration.gears import (
    MARGINS,
    SignalRecorder,
    Trials,
    choose_gears,
    least_margin,
    replayed_images,
)
from adaptcache.calibration.match import match
from adaptcache.engines import make_setup
from adaptcache.evaluation.certify import QualityTarget, certify
from adaptcache.evaluation.metrics import psnr
from adaptcache.fitting.plan import best_plan
from adaptcache.fitting.signals import signal_rows
from adaptcache.policies.gears import Gears
from adaptcache.policies.plan import Plan
from adaptcache.policies.signals import compute_signals, fit_signal_specs
from adaptcache.presets import read_prompts, resolve
from adaptcache.profiling.measure import measure
from adaptcache.runs import PromptSet
from adaptcache.schedule.rule import Rule

FIT, PROMPTS, BATCH = 80, 340, 20
TRUST = 0.5  # in the measured sensitivity, for all plans alike
SPLITS = 200


class PlanRuns:
    """The demo model, its full runs, and what plans gave: from the cache, or run."""

    def __init__(self, cache: Path, guidance: float) -> None:
        preset, known = resolve("emoji-flux-32"), read_prompts("emoji-varied")
        pipe_kwargs, prompts = dict(preset.call), list[Any]([*known.calibration, *known.held_out][:PROMPTS])
        if guidance > 1:
            pipe_kwargs["true_cfg_scale"] = guidance
            prompts = [{"prompt": text, "negative_prompt": ""} for text in prompts]
        self.cache, self.pipe, self.prompts = cache, preset.load_pipeline("cpu"), PromptSet.of(prompts)
        options = {"batch_size": BATCH, "cache_dir": Cache(cache), "pipe_kwargs": pipe_kwargs}
        self.setup = make_setup(self.pipe, preset.steps, options)
        measurement = measure(self.setup, self.prompts)
        self.fitted = measurement.head(FIT)
        self.profile, path = self.fitted.profile, cache / "truth.npy"
        if not path.exists():
            np.save(path, replayed_images(measurement))
        self.truth: np.ndarray = np.load(path)

    def plan(self, calls: int, prefix: Sequence[int] = (0,)) -> list[int]:
        """Returns the plan of the calibration prompts with as many calls."""
        return best_plan(self.profile.errors, self.profile.sensitivity**TRUST, calls, prefix)

    def run(self, plan: list[int]) -> tuple[np.ndarray, torch.Tensor]:
        """Returns decibels with shape (P,), and outputs at the computed steps with shape (P, K, *)."""
        path = self.cache / f"plan-{'-'.join(map(str, plan))}.npz"
        if not path.exists():
            print("running", plan)
            quality, outputs = self._run(plan)
            np.savez(path, plan=plan, psnr=quality, u=outputs)
        with np.load(path) as found:
            return found["psnr"][:PROMPTS], torch.from_numpy(found["u"][:PROMPTS])

    def _run(self, plan: list[int]) -> tuple[np.ndarray, np.ndarray]:
        forecast = match(self.fitted, plan).forecast
        rule = Rule(policy=Plan.of(plan, tuple(map(float, self.profile.times))), forecast=forecast)
        recorder = SignalRecorder(build_schedule(self.setup, self.profile, (rule,)), 0, ())
        images, outputs = list[np.ndarray](), list[np.ndarray]()
        for batch in self.setup.batches(self.prompts):
            images += self.setup.run(recorder, batch, decode=True).images
            outputs.append(torch.stack(recorder.outputs[::-1], 1).numpy())
        return np.array([psnr(a, b) for a, b in zip(images, self.truth, strict=True)]), np.concatenate(outputs)


class LearnedGears:
    """Gears fitted on the calibration prompts, and what they predict for the held-out ones."""

    def __init__(self, runs: PlanRuns, plans: list[list[int]]) -> None:
        self.plans, self.calls = plans, np.array([len(plan) for plan in plans])
        rows = [signal_rows(runs.profile.kernel, plan) for plan in plans]
        made = [runs.run(plan) for plan in plans]
        self.ends = np.stack([values for values, _ in made])
        seen = [
            [
                compute_signals(row, [u[:, j] for j in range(k + 1, -1, -1)]).double().numpy()
                for k, row in enumerate(own)
            ]
            for own, (_, u) in zip(rows, made, strict=True)
        ]
        specs, self.guessed = fit_signal_specs(
            plans, rows, [[part[:FIT] for part in one] for one in seen], self.ends[:, :FIT]
        )
        times = tuple(map(float, runs.profile.times))
        gears = tuple(gear for plan in plans for gear in Plan.of(plan, times).gears)
        self.trials = Trials(self.ends[:, FIT:], [[part[FIT:] for part in one] for one in seen])
        self.predicted = self.trials.predicted(Gears(gears=gears, signal_specs=specs, target=0.0))

    def run(self, wanted: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns decibels and calls of each held-out prompt."""
        gears = choose_gears(self.plans, self.predicted, wanted)
        return self.trials.ends[gears, np.arange(len(gears))], self.calls[gears]


def oracle(ends: np.ndarray, calls: np.ndarray, target: float, max_failure_rate: float) -> float:
    """Returns the mean calls of the cheapest gears that reach a target, but for a share of the prompts."""
    reached = ends >= target
    need = np.where(reached.any(axis=0), calls[reached.argmax(axis=0)], calls[-1])
    spare = int(max_failure_rate * len(need)) - int((~reached.any(axis=0)).sum())
    if spare > 0:  # those that cost most may as well miss it in the cheapest gear
        need[np.argsort(need)[::-1][:spare]] = calls[0]
    return float(need.mean())


def share(values: np.ndarray, target: float) -> float:
    """Returns which share of prompts stays below a target."""
    return float((values < target).mean())


def gap_table(gears: LearnedGears, singles: dict[int, np.ndarray], targets: Sequence[float]) -> Table:
    """Compares gears with the cheapest single plan and with the oracle."""
    table = Table(title=f"mean calls of {len(gears.predicted[0, 0])} held-out prompts, 95 % above the target")
    heads = (
        "target dB",
        "single",
        "gears, same share",
        "oracle",
        "gap closed",
        "gears, margin",
        "calls",
        "below",
    )
    for heading in heads:
        table.add_column(heading, justify="right")
    for target in targets:
        plans = [*singles.items(), *zip(gears.calls.tolist(), gears.ends, strict=True)]
        enough = sorted(calls for calls, values in plans if share(values[FIT:], target) <= 0.05)
        best = None
        for margin in MARGINS:  # the smallest margin with which as few prompts are below
            values, calls = gears.run(target + margin)
            if share(values, target) > 0.05:
                break
            best = float(calls.mean())
        limit = oracle(gears.trials.ends, gears.calls, target, 0.05)
        margin = least_margin(gears.plans, gears.guessed, gears.ends[:, :FIT], QualityTarget(target))
        values, calls = gears.run(target + margin)
        single = enough[0] if enough else None
        closed = f"{(single - best) / (single - limit):.0%}" if single and best and single > limit else "-"
        cells = (single or "none", f"{best:.2f}" if best else "none", f"{limit:.2f}", closed, f"{margin:.2f}")
        table.add_row(f"{target:g}", *map(str, cells), f"{calls.mean():.2f}", f"{share(values, target):.1%}")
    return table


def coverage_table(gears: LearnedGears, singles: dict[int, np.ndarray], target: float) -> Table:
    """Counts certificates that claim what is not so, as shares of all splits."""
    lines = {
        "single plans": np.stack([values[FIT:] for _, values in sorted(singles.items(), reverse=True)]),
        "gears, by margin": np.stack([gears.run(target + margin)[0] for margin in MARGINS]),
    }
    heads = ("settings", "at most", "confidence", "certified", "wrong: halves", "wrong: draws", "other half")
    table = Table(*heads, title=f"{SPLITS} random splits, {target:g} dB")
    for name, values in lines.items():
        for rate, confidence in ((0.05, 0.95), (0.1, 0.9), (0.2, 0.8)):
            counts = count_certificates(values, QualityTarget(target, rate, confidence)) / SPLITS
            table.add_row(name, f"{rate:g}", f"{confidence:g}", *(f"{count:.1%}" for count in counts))
    return table


def count_certificates(values: np.ndarray, wanted: QualityTarget) -> np.ndarray:
    """Counts certificates from halves of P prompts: issued, wrong, wrong from draws, and by the other half.

    Wrong is what exceeds the share among all P prompts, as if there were no others. Halves hold half of them;
    as many draws with replacement are independent, as the bound supposes. The share in the other half is not
    the truth: it scatters as much as what the certificate was made from.
    """
    rng, found, target = np.random.default_rng(0), np.zeros(4), wanted.target
    every = values.shape[1]
    for _ in range(SPLITS):
        order = rng.permutation(every)
        half = order[: every // 2]
        proof = certify(values[:, half], wanted)
        if proof.certified is not None:
            own = values[proof.certified]
            found[0] += 1
            found[1] += share(own, target) > wanted.max_failure_rate
            found[3] += share(own[order[every // 2 :]], target) > wanted.max_failure_rate
        drawn = certify(values[:, rng.integers(0, every, every // 2)], wanted)
        found[2] += drawn.certified is not None and share(values[drawn.certified], target) > wanted.max_failure_rate
    return found


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="a folder; some 200 MB")
    parser.add_argument("--singles", type=int, nargs="+", default=[5, 6, 7, 8, 9, 10, 12])
    parser.add_argument("--gears", type=int, nargs="+", default=[5, 6, 7, 8, 10, 12])
    parser.add_argument("--shared", type=int, nargs="+", default=[0, 2, 5], help="steps all gears begin with")
    parser.add_argument("--targets", type=float, nargs="+", default=[35, 40, 45, 50])
    parser.add_argument("--guidance", type=float, default=1.0, help="true_cfg_scale")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    runs = PlanRuns(options.cache, options.guidance)
    singles = {}
    for calls in track(options.singles, "single plans"):
        singles[calls] = runs.run(runs.plan(calls))[0]
    plans = [runs.plan(calls, options.shared) for calls in track(options.gears, "gears")]
    gears = LearnedGears(runs, plans)
    out = Console(width=120)
    for (gear, number), predicted in sorted(gears.predicted.items()):
        ends = gears.trials.ends[gear]
        r2 = 1 - ((ends - predicted) ** 2).sum() / ((ends - ends.mean()) ** 2).sum()
        out.print(f"{gears.calls[gear]} calls, after {number + 2} computed steps: R2 {r2:.2f} on held-out prompts")
    out.print(gap_table(gears, singles, options.targets))
    for target in options.targets:
        out.print(coverage_table(gears, singles, target))


if __name__ == "__main__":
    main()
