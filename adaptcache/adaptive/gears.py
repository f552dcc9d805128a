"""Fits a schedule that adapts: plans that begin alike, weights for each, and what tells which to follow.

The file is longer than ours are: the trials that guesses are fitted to belong to the one step that uses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..call import Call, Prompt
from ..fitting.kernel import Array
from ..fitting.looks import look_rows
from ..fitting.path import shared_plans
from ..forecasts.matched import Matched
from ..matching import Fit, match
from ..matching.planned import assembled
from ..metrics import psnr
from ..policies.gears import Gears
from ..policies.plan import Plan
from ..profiling.measure import Measurement, Progress, in_turn, silent
from ..schedule import Rule, Schedule
from ..validate import check_images
from .choose import least_margin
from .learn import learned
from .witness import Witnessed, landed_images, witnessed

__all__ = ["Trials", "fit_gears", "tried"]

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
        for g, looks in enumerate(policy.watch):
            for number, look in enumerate(looks):
                if look.guess:
                    signals = torch.from_numpy(np.concatenate(self.seen[g][: number + 1], 1)).float()
                    found[g, number] = look.guess.predict(signals).double().numpy()
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
    rows = [look_rows(profile.kernel, plan) for plan in plans]
    truth = landed_images(
        pipe, call, prompts, measurement.runs, batch_size,
        lambda done: progress("decoding the full runs", done, len(prompts)),
    )  # fmt: skip
    trials = tried(pipe, call, prompts, plain, rows, truth, batch_size=batch_size, progress=progress)
    watched, guessed = learned(plans, rows, trials.seen, trials.ends)
    margin = least_margin(plans, guessed, trials.ends, target, at_most)
    policy = Gears(gears=gears, watch=watched, target=target, margin=margin)
    return plain.model_copy(update={"rules": (Rule(policy=policy, forecast=forecast),)})
