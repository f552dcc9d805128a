"""Which gear each prompt would take: what the policy does on the device, on arrays of many prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..engines.diffusers.gate import Gate
from ..evaluation.certify import Certificate, Claim, certify
from ..evaluation.generate import generate
from ..evaluation.metrics import psnr, summary
from ..evaluation.validate import check_images
from ..fitting.kernel import Array
from ..fitting.plan import shared_plans
from ..fitting.signals import signal_rows
from ..forecasts.matched import Matched
from ..hooks import Update
from ..policies.gears import Gears
from ..policies.plan import Plan
from ..policies.signals import compute_signals, fit_signal_specs
from ..profiling.cache import Store, content_key
from ..profiling.measure import Measurement, Progress, in_turn, silent
from ..profiling.reference import Trajectory, batches, twin
from ..runs import Call, Prompt
from ..runtime.runner import Runner
from ..schedule.format import Evidence
from ..schedule.rule import Rule
from ..schedule.schedule import Schedule
from ..step import Step
from .fit import assembled
from .match import Fit, match
from .targets import computing_all

MARGINS = tuple(np.arange(12.0, -6.01, -0.25))  # decibels, from the slowest to the fastest


def chosen(
    plans: Sequence[Sequence[int]], promised: Mapping[tuple[int, int], Array], wanted: float
) -> np.ndarray:
    """Returns the gear each prompt ends in, with shape (P,).

    Arguments:
        plans: The computed steps of the gears, budgets rising.
        promised: By gear and number of the look, what was guessed for each prompt, with shape (P,).
        wanted: Decibels that a guess has to reach.
    """
    gears = np.zeros(len(next(iter(promised.values()))), dtype=int)
    for computed in range(2, max(map(len, plans)) + 1):
        before = gears.copy()
        for gear in np.unique(before):
            opened = [g for g, plan in enumerate(plans) if plan[:computed] == plans[gear][:computed]]
            if len(opened) > 1 and computed <= len(plans[gear]):
                here = before == gear
                good = np.stack([promised[g, computed - 2][here] >= wanted for g in opened])
                first = np.where(good.any(axis=0), good.argmax(axis=0), len(opened) - 1)
                gears[here] = np.array(opened)[first]
    return gears


def least_margin(
    plans: Sequence[Sequence[int]],
    promised: Mapping[tuple[int, int], Array],
    ends: Array,
    target: float,
    at_most: float,
) -> float:
    """Returns the smallest margin with which no more than a share of prompts stays below the target.

    Arguments:
        plans: As for `chosen`.
        promised: As for `chosen`; guesses must come from other prompts.
        ends: Decibels that each gear's runs ended with, with shape (G, P).
        target: Decibels that a prompt should reach.
        at_most: The share of prompts that may stay below.
    """
    best = MARGINS[0]
    for margin in MARGINS:
        gears = chosen(plans, promised, target + margin)
        if float((ends[gears, np.arange(len(gears))] < target).mean()) > at_most:
            break
        best = margin
    return float(best)


# Runs that are watched: what was seen at their computed steps, and how their images ended.

Row = tuple[float, ...]


class Landing:
    """Goes where a recorded run went, with one call of the denoiser: all the pipeline has to do is decode."""

    def __init__(self, run: Trajectory) -> None:
        self.run = run

    def begin(self, times: tuple[float, ...]) -> None:
        """The grid is the recorded one."""

    def computes(self, step: Step) -> bool:
        return False  # but for the first step, which always is

    def update(self, update: Update) -> Tensor:
        return self.run.u[update.track][update.step.index].to(update.move.u)

    def landed(self, update: Update, y: Tensor) -> None:
        """Where it was before."""

    def end(self) -> None:
        """Nothing of it is kept."""


class Witness(Runner):
    """Follows one gear of a schedule and notes the signals of each computed step."""

    def __init__(self, schedule: Schedule, gear: int, rows: Sequence[Sequence[Row]]) -> None:
        super().__init__(schedule, gear=gear)
        self.rows = rows

    def begin(self, times: tuple[float, ...]) -> None:
        super().begin(times)
        self.outputs: list[Tensor] = []
        self.seen: list[Tensor] = []

    def update(self, update: Update) -> Tensor:
        if update.computed and update.track == 0:
            self.outputs.insert(0, update.move.u.clone())
            if 0 < len(update.step.past) <= len(self.rows):
                self.seen.append(compute_signals(self.rows[len(update.step.past) - 1], self.outputs).cpu())
        return super().update(update)


@dataclass(frozen=True)
class Witnessed:
    """What runs of P prompts showed.

    Arguments:
        images: Decoded, one a prompt.
        seen: The signals of each computed step after the first, each with shape (P, F).
    """

    images: list[np.ndarray]
    seen: list[Array]


def decoded(pipe: Any, call: Call, prompts: Sequence[Prompt], visitor: Any, number: int) -> list[np.ndarray]:
    """Runs one batch with a visitor and returns what it decodes to."""
    with closing(Gate(pipe, visitor).open()):
        return list(np.asarray(call(pipe, prompts, number, output_type="np")))


def landed_images(
    pipe: Any,
    call: Call,
    prompts: Sequence[Prompt],
    runs: Sequence[Trajectory],
    batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[np.ndarray]:
    """Returns the images of recorded full runs, at the cost of one call a batch."""
    own, images = twin(pipe), list[np.ndarray]()
    for run, (first, batch) in zip(runs, batches(prompts, batch_size), strict=True):
        images += decoded(own, call, batch, Landing(run), first)
        progress(first + len(batch))
    return images


def witnessed(
    pipe: Any,
    call: Call,
    prompts: Sequence[Prompt],
    schedule: Schedule,
    gear: int,
    rows: Sequence[Sequence[Row]],
    *,
    batch_size: int = 1,
    offset: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Witnessed:
    """Runs prompts in one gear of a schedule.

    Arguments:
        pipe: A diffusers pipeline; it is not changed.
        call: How to call it.
        prompts: P prompts.
        schedule: What to run by.
        gear: The gear to stay in.
        rows: What to look at after each computed step but the first.
        batch_size: How many prompts a run has.
        offset: Added to the number of a prompt, which sets its noise.
        progress: Told the number of prompts done after each run.
    """
    own, witness = twin(pipe), Witness(schedule, gear, rows)
    images, seen = list[np.ndarray](), list[list[Tensor]]()
    for first, batch in batches(prompts, batch_size):
        images += decoded(own, call, batch, witness, first + offset)
        # Where a prompt gives several samples, the one that changes most stands for it.
        seen.append([signals.view(len(batch), -1, signals.shape[1]).amax(1) for signals in witness.seen])
        progress(first + len(batch))
    joined = [torch.cat(parts).double().numpy() for parts in zip(*seen, strict=True)]
    return Witnessed(images, joined)


# Fits a schedule that adapts: plans that begin alike, weights for each, and what tells which to follow.
#
# The file is longer than ours are: the trials that guesses are fitted to belong to the one step that uses them.

SHARED = 3  # computed steps that all gears begin with: after two, little is known of a prompt
TRUST = 0.5  # in the measured influence: the middle of what `fitted` tries for a single plan


@dataclass(frozen=True)
class Trials:
    """What runs of P prompts in each of G gears gave.

    Arguments:
        ends: Decibels against the full run with the same noise, with shape (G, P).
        seen: By gear and computed step after the first, the signals, each with shape (P, F).
    """

    ends: Array
    seen: list[list[Array]]

    def promised(self, policy: Gears) -> dict[tuple[int, int], Array]:
        """Returns what the guesses of a policy say, by gear and number of the look, with shape (P,)."""
        import torch

        found = {}
        for g, looks in enumerate(policy.signal_specs):
            for number, look in enumerate(looks):
                if look.predictor:
                    signals = torch.from_numpy(np.concatenate(self.seen[g][: number + 1], 1)).float()
                    found[g, number] = look.predictor.predict(signals).double().numpy()
        return found


def tried(
    pipe: Any,
    call: Call,
    prompts: Sequence[Prompt],
    schedule: Schedule,
    rows: Sequence[Sequence[Sequence[tuple[float, ...]]]],
    truth: Sequence[np.ndarray],
    *,
    batch_size: int = 1,
    offset: int = 0,
    progress: Progress = silent,
) -> Trials:
    """Runs prompts in every gear of a schedule.

    Arguments:
        pipe: A diffusers pipeline; it is not changed.
        call: How to call it.
        prompts: P prompts.
        schedule: What to run by.
        rows: What to look at, by gear and computed step after the first.
        truth: The images of the full runs.
        batch_size: How many prompts a run has.
        offset: Added to the number of a prompt, which sets its noise.
        progress: Told the stage, what is done and of how much.
    """
    made: list[Witnessed] = []
    for gear, looks in enumerate(rows):
        stage = f"{len(prompts)} prompts in each gear"
        made.append(
            witnessed(
                pipe, call, prompts, schedule, gear, looks,
                batch_size=batch_size, offset=offset,
                progress=in_turn(progress, stage, gear, len(rows), len(prompts)),
            )
        )  # fmt: skip
        check_images(made[-1].images, offset, f"gear {gear}")
    ends = [[psnr(a, b) for a, b in zip(one.images, truth, strict=True)] for one in made]
    return Trials(np.array(ends), [one.seen for one in made])


def matched(
    pipe: Any,
    call: Call,
    prompts: Sequence[Prompt],
    plans: Sequence[list[int]],
    measurement: Measurement,
    fit: Fit,
    batch_size: int,
    progress: Progress,
) -> Matched:
    """Returns the weights of each plan, one gear each."""
    steps, tables = measurement.profile.steps, []
    for number, plan in enumerate(plans):
        watch = in_turn(progress, "matching the gears", number, len(plans), steps)
        found = match(
            pipe, call, prompts, plan, measurement.profile, measurement.runs,
            fit=fit, batch_size=batch_size, progress=watch,
        )  # fmt: skip
        tables.append(found.forecast.table[0])
        watch(steps)
    return Matched(history=fit.history, features=found.forecast.features, table=tuple(tables))


def fit_gears(
    pipe: Any,
    call: Call,
    prompts: Sequence[Prompt],
    measurement: Measurement,
    calls: Sequence[int],
    target: float,
    *,
    at_most: float = 0.05,
    fit: Fit = Fit(),  # noqa: B008 - frozen
    batch_size: int = 1,
    progress: Progress = silent,
) -> Schedule:
    """Fits plans, weights, guesses and their margin on calibration prompts.

    Arguments:
        pipe: A diffusers pipeline; it is not changed.
        call: How to call it.
        prompts: The P calibration prompts of the measurement.
        measurement: What full runs gave.
        calls: How many steps each gear computes, rising.
        target: Decibels that a prompt should end with.
        at_most: The share of prompts that may stay below.
        fit: What the forecasts may use.
        batch_size: How many prompts a run has, as in the measurement.
        progress: Told the stage, what is done and of how much.
    """
    profile = measurement.profile
    times = tuple(map(float, profile.times))
    shared = min(SHARED, min(calls))
    plans = shared_plans(profile.errors, profile.sensitivity**TRUST, calls, shared)
    forecast = matched(pipe, call, prompts, plans, measurement, fit, batch_size, progress)
    gears = tuple(gear for plan in plans for gear in Plan.of(plan, times).gears)
    about = {"prompts": len(prompts), "history": fit.history, "ridge": fit.ridge}
    plain = assembled(pipe, call, profile, (Rule(policy=Plan(gears=gears), forecast=forecast),), about)
    rows = [signal_rows(profile.kernel, plan) for plan in plans]
    truth = landed_images(
        pipe, call, prompts, measurement.runs, batch_size,
        lambda done: progress("decoding the full runs", done, len(prompts)),
    )  # fmt: skip
    trials = tried(pipe, call, prompts, plain, rows, truth, batch_size=batch_size, progress=progress)
    watched, guessed = fit_signal_specs(plans, rows, trials.seen, trials.ends)
    margin = least_margin(plans, guessed, trials.ends, target, at_most)
    policy = Gears(gears=gears, signal_specs=watched, target=target, margin=margin)
    return plain.model_copy(update={"rules": (Rule(policy=policy, forecast=forecast),)})


# From measurements to a schedule with gears that was judged on held-out prompts.

ALONE = 1000.0  # decibels of a margin that no guess reaches: the slowest gear, whatever is seen


def calibrated_gears(
    pipe: Any,
    call: Call,
    prompts: Sequence[Prompt],
    held_out: Sequence[Prompt],
    measurement: Measurement,
    calls: Sequence[int],
    claim: Claim,
    *,
    certify: bool = False,
    fit: Fit = Fit(),  # noqa: B008 - frozen
    batch_size: int = 1,
    store: Store | None = None,
    progress: Progress = silent,
) -> Schedule:
    """Fits gears, and judges them on held-out prompts if there are any.

    Arguments:
        pipe: A diffusers pipeline; it is not changed.
        call: How to call it.
        prompts: The calibration prompts of the measurement.
        held_out: Prompts to measure on.
        measurement: What full runs gave.
        calls: How many steps each gear computes, rising.
        claim: What should be reached.
        certify: Whether the held-out prompts decide about the margin, and about caching at all.
        fit: What the forecasts may use.
        batch_size: How many prompts a run has.
        store: Where images of full runs are kept.
        progress: Told the stage, what is done and of how much.
    """
    schedule = fit_gears(
        pipe, call, prompts, measurement, calls, claim.target,
        at_most=claim.at_most, fit=fit, batch_size=batch_size, progress=progress,
    )  # fmt: skip
    if not held_out:
        return schedule
    first, policy = len(prompts), schedule.rules[0].policy
    assert isinstance(policy, Gears)
    truth = full_images(pipe, call, held_out, batch_size, first, store, progress)
    rows = [[look.rows for look in looks] for looks in policy.signal_specs]
    trials = tried(
        pipe, call, held_out, schedule, rows, truth, batch_size=batch_size, offset=first, progress=progress
    )
    return judged(schedule, trials, claim if certify else None, f"{len(held_out)} held-out")


def full_images(
    pipe: Any,
    call: Call,
    held_out: Sequence[Prompt],
    batch_size: int,
    first: int,
    store: Store | None,
    progress: Progress,
) -> list[np.ndarray]:
    """Returns the images of full runs, from the store where they are in it."""
    key = content_key(pipe, call, held_out, batch_size, 1, first, "images") if store else ""
    if store and (found := store.load_images(key)) is not None:
        return found
    count = len(held_out)
    images = generate(
        pipe, call, held_out, batch_size=batch_size, offset=first,
        progress=lambda done: progress("held-out, full", done, count),
    ).images  # fmt: skip
    check_images(images, first, "the full run")
    if store:
        store.save_images(key, images)
    return images


def judged(schedule: Schedule, trials: Trials, claim: Claim | None, prompts: str) -> Schedule:
    """Returns a schedule with gears with its evidence; with a claim, at the margin that is certified.

    Margins are tested from the largest to the smallest, after the slowest gear alone: an order that is fixed
    before the held-out prompts are looked at. Prompts choose their gears one by one, as in runs of one.

    Arguments:
        schedule: With gears.
        trials: What the held-out prompts gave in each of them.
        claim: What they should show; None leaves the margin of the calibration.
        prompts: The name of the prompt set.
    """
    rule = schedule.rules[0]
    policy = rule.policy
    assert isinstance(policy, Gears)
    times = schedule.grid.times
    plans = [policy.steps(times, gear) for gear in range(len(policy.gears))]
    promised, everyone = trials.promised(policy), np.arange(trials.ends.shape[1])
    proof: Certificate | None = None
    if claim:
        margins = (ALONE, *MARGINS)
        taken = [chosen(plans, promised, claim.target + margin) for margin in margins]
        names = ["the slowest gear alone", *(f"gears at a margin of {margin:g} dB" for margin in MARGINS)]
        proof = certify(
            np.stack([trials.ends[gears, everyone] for gears in taken]),
            claim.target, claim.at_most, claim.confidence, settings=names, prompts=prompts,
        )  # fmt: skip
        if proof.certified is None:
            return computing_all(schedule, proof)
        policy = policy.model_copy(update={"margin": margins[proof.certified]})
    gears = chosen(plans, promised, policy.target + policy.margin)
    calls = float(np.mean([len(plans[gear]) for gear in gears]))
    evidence = Evidence(
        prompts=prompts, n=len(everyone), calls=(round(calls), len(times)), speed=len(times) / calls,
        psnr=summary(trials.ends[gears, everyone].tolist()), certificate=proof,
    )  # fmt: skip
    rules = (rule.model_copy(update={"policy": policy}),)
    return schedule.model_copy(update={"rules": rules, "evidence": evidence})
