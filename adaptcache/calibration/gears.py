"""Gears: plans that begin alike, weights for each, and what tells which one a prompt needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..evaluation.certify import QualityTarget, certify
from ..evaluation.generate import reference_images
from ..evaluation.metrics import score_images
from ..evaluation.validate import compute_all, evidence_of
from ..fitting.kernel import Array
from ..fitting.plan import shared_plans
from ..fitting.signals import signal_rows
from ..forecasts.matched import Matched
from ..hooks import SchedulerStep
from ..policies.gears import Gears
from ..policies.plan import Plan
from ..policies.signals import compute_signals, fit_signal_specs
from ..profiling.measure import Measurement
from ..profiling.reference import Replay
from ..runs import PromptSet, Setup
from ..runtime.runner import Runner
from ..schedule.format import Certificate
from ..schedule.rule import Rule
from ..schedule.schedule import Schedule
from .fit import about_fit, build_schedule
from .match import Fit, match

SHARED = 3  # computed steps that all gears begin with: after two, little is known of a prompt
TRUST = 0.5  # in the measured sensitivity: the middle of what `fit_schedule` tries for a single plan
MARGINS = tuple(np.arange(12.0, -6.01, -0.25))  # decibels, from the slowest to the fastest
SLOWEST = 1000.0  # decibels of a margin that no prediction reaches: the slowest gear, whatever is seen

Row = tuple[float, ...]


@dataclass(frozen=True)
class Trials:
    """What runs of P prompts in each of G gears gave."""

    ends: Array  # decibels against the full run with the same noise, with shape (G, P)
    seen: list[list[Array]]  # by gear and computed step after the first, the signals, each with shape (P, F)

    def predicted(self, policy: Gears) -> dict[tuple[int, int], Array]:
        """Returns what a policy predicts, by gear and number of the signal, with shape (P,)."""
        found = {}
        for g, signals in enumerate(policy.signal_specs):
            for number, signal in enumerate(signals):
                if signal.predictor:
                    values = torch.from_numpy(np.concatenate(self.seen[g][: number + 1], 1)).float()
                    found[g, number] = signal.predictor.predict(values).double().numpy()
        return found


def fit_gears(measurement: Measurement, calls: Sequence[int], target: QualityTarget, fit: Fit) -> Schedule:
    """Fits plans, weights, predictions and their margin on calibration prompts."""
    setup, profile = measurement.setup, measurement.profile
    times = tuple(map(float, profile.times))
    plans = shared_plans(profile.errors, profile.sensitivity**TRUST, calls, min(SHARED, min(calls)))
    tables = []
    for number, plan in enumerate(plans):
        report = setup.stage("matching the gears", len(plans) * len(times), number * len(times))
        found = match(measurement, plan, fit, report)
        tables.append(found.forecast.table[0])
        report(len(times))
    forecast = Matched(history=fit.history, features=found.forecast.features, table=tuple(tables))
    gears = tuple(gear for plan in plans for gear in Plan.of(plan, times).gears)
    rule = Rule(policy=Plan(gears=gears), forecast=forecast)
    plain = build_schedule(setup, profile, (rule,), about_fit(measurement, fit))
    rows = [signal_rows(profile.kernel, plan) for plan in plans]
    trials = evaluate_gears(setup, measurement.prompts, plain, rows, replayed_images(measurement))
    specs, predicted = fit_signal_specs(plans, rows, trials.seen, trials.ends)
    margin = least_margin(plans, predicted, trials.ends, target)
    policy = Gears(gears=gears, signal_specs=specs, target=target.target, margin=margin)
    return plain.model_copy(update={"rules": (Rule(policy=policy, forecast=forecast),)})


def replayed_images(measurement: Measurement) -> list[np.ndarray]:
    """Returns the images of recorded full runs, at the cost of one denoiser call a batch."""
    setup, prompts, images = measurement.setup, measurement.prompts, list[np.ndarray]()
    for run, batch in zip(measurement.runs, setup.batches(prompts), strict=True):
        images += setup.run(Replay(run), batch, decode=True).images
        setup.progress("decoding the full runs", len(images), len(prompts))
    return images


class SignalRecorder(Runner):
    """Follows one gear of a schedule and records the signals of each computed step."""

    def __init__(self, schedule: Schedule, gear: int, rows: Sequence[Sequence[Row]]) -> None:
        super().__init__(schedule, gear=gear)
        self.rows = rows

    def on_run_start(self, times: tuple[float, ...]) -> None:
        super().on_run_start(times)
        self.outputs: list[Tensor] = []
        self.seen: list[Tensor] = []

    def model_output(self, step: SchedulerStep) -> Tensor:
        if step.computed and step.track == 0:
            self.outputs.insert(0, step.u.clone())
            if 0 < len(step.step.past) <= len(self.rows):
                self.seen.append(compute_signals(self.rows[len(step.step.past) - 1], self.outputs).cpu())
        return super().model_output(step)


def evaluate_gears(
    setup: Setup,
    prompts: PromptSet,
    schedule: Schedule,
    rows: Sequence[Sequence[Sequence[Row]]],
    truth: Sequence[np.ndarray],
) -> Trials:
    """Runs prompts in every gear of a schedule; `rows` are the signals, by gear and computed step after the first."""
    ends, seen = [], []
    for gear, own in enumerate(rows):
        report = setup.stage(f"{len(prompts)} prompts in each gear", len(rows) * len(prompts), gear * len(prompts))
        recorder, images, signals = SignalRecorder(schedule, gear, own), list[np.ndarray](), list[list[Tensor]]()
        for batch in setup.batches(prompts):
            images += setup.run(recorder, batch, decode=True).images
            # Where a prompt gives several samples, the one that changes most stands for it.
            signals.append([one.view(len(batch), -1, one.shape[1]).amax(1) for one in recorder.seen])
            report(len(images))
        ends.append(score_images(images, truth, prompts.first, f"gear {gear}"))
        seen.append([torch.cat(parts).double().numpy() for parts in zip(*signals, strict=True)])
    return Trials(np.array(ends), seen)


def prove_gears(
    setup: Setup, prompts: PromptSet, schedule: Schedule, target: QualityTarget | None, groups: Sequence[str] = ()
) -> Schedule:
    """Returns a schedule with gears with the evidence of held-out prompts; with a target, at the certified margin.

    Margins are tested from the largest to the smallest, after the slowest gear alone: an order that is fixed
    before the held-out prompts are looked at. Prompts choose their gears one by one, as in runs of one.

    Arguments:
        target: What they should show; None leaves the margin of the calibration.
        groups: The subject of each of them.
    """
    rule = schedule.rules[0]
    policy = rule.policy
    assert isinstance(policy, Gears)
    rows = [[signal.rows for signal in signals] for signals in policy.signal_specs]
    trials = evaluate_gears(setup, prompts, schedule, rows, reference_images(setup, prompts))
    times, plans = schedule.grid.times, schedule.plans
    predicted, everyone = trials.predicted(policy), np.arange(len(prompts))
    proof: Certificate | None = None
    if target:
        margins = (SLOWEST, *MARGINS)
        taken = [choose_gears(plans, predicted, target.target + margin) for margin in margins]
        names = ["the slowest gear alone", *(f"gears at a margin of {margin:g} dB" for margin in MARGINS)]
        proof = certify(
            np.stack([trials.ends[gears, everyone] for gears in taken]), target,
            settings=names, prompts=f"{len(prompts)} held-out", groups=groups,
        )  # fmt: skip
        if proof.certified is None:
            return compute_all(schedule, proof)
        policy = policy.model_copy(update={"margin": margins[proof.certified]})
    gears = choose_gears(plans, predicted, policy.target + policy.margin)
    calls = float(np.mean([len(plans[gear]) for gear in gears]))
    evidence = evidence_of(trials.ends[gears, everyone].tolist(), calls, len(times), certificate=proof)
    rules = (rule.model_copy(update={"policy": policy}),)
    return schedule.model_copy(update={"rules": rules, "evidence": evidence})


def choose_gears(
    plans: Sequence[Sequence[int]], predicted: Mapping[tuple[int, int], Array], wanted: float
) -> np.ndarray:
    """Returns the gear each prompt ends in, with shape (P,): what the policy does on the device, on arrays.

    What was `predicted` for the prompts is by gear, budgets rising, and number of the signal; with shape (P,).
    """
    gears = np.zeros(len(next(iter(predicted.values()))), dtype=int)
    for computed in range(2, max(map(len, plans)) + 1):
        before = gears.copy()
        for gear in np.unique(before):
            opened = [g for g, plan in enumerate(plans) if plan[:computed] == plans[gear][:computed]]
            if len(opened) > 1 and computed <= len(plans[gear]):
                here = before == gear
                good = np.stack([predicted[g, computed - 2][here] >= wanted for g in opened])
                first = np.where(good.any(axis=0), good.argmax(axis=0), len(opened) - 1)
                gears[here] = np.array(opened)[first]
    return gears


def least_margin(
    plans: Sequence[Sequence[int]], predicted: Mapping[tuple[int, int], Array], ends: Array, target: QualityTarget
) -> float:
    """Returns the smallest margin with which no more than a share of prompts stays below the target.

    Runs in each gear ended with `ends`, in decibels and with shape (G, P); predictions must come from other prompts.
    """
    best = MARGINS[0]
    for margin in MARGINS:
        gears = choose_gears(plans, predicted, target.target + margin)
        below = ends[gears, np.arange(len(gears))] < target.target
        if float(below.mean()) > target.max_failure_rate:
            break
        best = margin
    return float(best)
