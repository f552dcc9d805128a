"""From measurements to a schedule with gears that was judged on held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..call import Call, Prompt
from ..certify import Certificate, Claim, certify
from ..generate import generate
from ..matching import Fit
from ..metrics import summary
from ..policies.gears import Gears
from ..profiling.measure import Measurement, Progress, silent
from ..profiling.store import Store, content_key
from ..schedule import Evidence, Schedule
from ..validate import check_images
from .choose import MARGINS, chosen
from .gears import Trials, fit_gears, tried
from .targets import computing_all

__all__ = ["ALONE", "calibrated_gears", "judged"]

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
    rows = [[look.rows for look in looks] for looks in policy.watch]
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
