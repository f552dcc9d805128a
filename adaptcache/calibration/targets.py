"""What users ask for, checked before anything is run, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence

from ..evaluation.certify import Certificate, Claim, certify
from ..evaluation.metrics import CEILING
from ..forecasts.extrapolate import Extrapolate
from ..policies.plan import Plan
from ..schedule.format import Evidence
from ..schedule.rule import Rule
from ..schedule.schedule import Schedule

__all__ = ["checked_claim", "checked_gears", "claimed", "computing_all"]

FEW = 8  # steps of a run in which there is little to skip


def checked_claim(
    min_psnr: float | None, at_most: float, confidence: float, certified: bool, geared: bool, held_out: int
) -> Claim | None:
    """Returns what is to be reached, or None where nothing was asked for.

    Raises:
        ValueError: Something is missing, or the held-out prompts are too few to show it.
    """
    if min_psnr is None:
        if certified or geared:
            raise ValueError("gears and certificates need a target: min_psnr (--min-psnr), say 35 decibels")
        return None
    if not (certified or geared):
        raise ValueError(
            f"a target of {min_psnr:g} dB needs something that can meet it: gears (--gears 0.18,0.25,0.36), "
            "a certificate (--certify), or `adaptcache tune`"
        )
    claim = Claim(min_psnr, at_most, confidence)
    if certified:
        claim.check_enough(held_out)
    return claim


def checked_gears(
    steps: int, gears: Sequence[float], budget: float | None, speed: float | None, finer: int
) -> list[int]:
    """Returns how many steps each gear computes, rising."""
    if budget is not None or speed is not None:
        raise ValueError("give gears, a budget or a speed, and not two of them")
    if finer > 1:
        raise ValueError("gears are fitted against the full run: leave the teacher's steps out")
    if bad := [gear for gear in gears if not 0 < gear <= 1]:
        raise ValueError(f"the budget of a gear must be in (0, 1], got {bad[0]:g}; say 0.18,0.25,0.36,0.5")
    calls = sorted({max(1, round(gear * steps)) for gear in gears})
    if len(calls) < 2:
        raise ValueError(f"gears need two budgets or more that differ in {steps} steps, got {len(calls)}")
    if calls[0] < 2:
        raise ValueError(
            f"a gear with {calls[0]} call in {steps} steps shows nothing of a prompt before it is too late: "
            f"take budgets of {2 / steps:.2g} and more"
        )
    return calls


def claimed(schedule: Schedule, evidence: Evidence, values: Sequence[float], claim: Claim | None) -> Schedule:
    """Returns the schedule with its evidence, and with a certificate if something was claimed.

    Arguments:
        schedule: What was run.
        evidence: What was measured.
        values: Decibels of each held-out prompt.
        claim: What they should show.
    """
    if claim is None:
        return schedule.model_copy(update={"evidence": evidence})
    found = certify(
        [values], claim.target, claim.at_most, claim.confidence,
        settings=[f"{evidence.calls[0]} of {evidence.calls[1]} calls"], prompts=evidence.prompts,
    )  # fmt: skip
    if found.certified is None:
        return computing_all(schedule, found)
    return schedule.model_copy(update={"evidence": evidence.model_copy(update={"certificate": found})})


def computing_all(schedule: Schedule, failed: Certificate) -> Schedule:
    """Returns the schedule that skips nothing, and says why: the verdict 'do not cache'."""
    times = schedule.grid.times
    count = len(times)
    few = (
        f" With {count} steps every one is large, as in distilled models, and there is little to skip."
        if count <= FEW
        else ""
    )
    verdict = f"Do not cache: every step is computed. {failed.sentence}{few}"
    rule = Rule(policy=Plan.of(range(count), times), forecast=Extrapolate(order=0))
    evidence = Evidence(
        prompts=failed.prompts, n=failed.n, calls=(count, count), speed=1.0,
        psnr={"mean": CEILING, "p05": CEILING}, certificate=failed, verdict=verdict,
    )  # fmt: skip
    return schedule.model_copy(update={"rules": (rule,), "evidence": evidence})
