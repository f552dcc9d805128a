"""Evidence: what a schedule is worth on prompts that it was not fitted on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..forecasts.extrapolate import Extrapolate
from ..policies.plan import Plan
from ..runs import PromptSet, Setup
from ..schedule.format import Certificate, Evidence
from ..schedule.rule import Rule
from ..schedule.schedule import Schedule
from .certify import QualityTarget, certify
from .generate import check_images, generate, reference_batch
from .metrics import CEILING, psnr, summary

FEW = 8  # steps of a run in which there is little to skip


def validate(
    setup: Setup,
    prompts: PromptSet,
    schedule: Schedule,
    *,
    refine: int = 1,
    target: QualityTarget | None = None,
    groups: Sequence[str] = (),
) -> Schedule:
    """Returns the schedule with the evidence of held-out prompts.

    Arguments:
        prompts: Held-out prompts; their noise is not that of a calibration prompt.
        refine: Steps of the reference in each step of the grid.
        target: What they should show; where they do not, the schedule computes everything.
        groups: The subject of each prompt, for the certificate.
    """
    jobs = setup.batches(prompts)
    truth: dict[int, list[np.ndarray]] = {}  # of this rank's batches

    def full(number: int) -> None:
        truth[number] = reference_batch(setup, jobs[number], refine)

    def planned(number: int) -> tuple[list[float], float, int]:
        made = generate(setup, jobs[number], schedule)
        check_images(made.images, jobs[number].first, "the run by the schedule")
        values = [psnr(a, b) for a, b in zip(made.images, truth[number], strict=True)]
        return values, made.calls, made.steps

    def report(stage: str) -> Callable[[int], None]:
        count = setup.stage(stage, len(prompts))
        return lambda batches: count(batches * setup.batch_size)

    setup.ranks.each(len(jobs), full, report("held-out, full"))
    results = setup.ranks.each(len(jobs), planned, report("held-out, by schedule"))
    values = [value for found, _, _ in results for value in found]
    calls = int(sum(calls for _, calls, _ in results)) // len(jobs)
    evidence = evidence_of(values, calls, results[0][2])
    if target is None:
        return schedule.model_copy(update={"evidence": evidence})
    found = certify(
        [values],
        target,
        settings=[f"{evidence.calls[0]} of {evidence.calls[1]} calls"],
        prompts=evidence.prompts,
        groups=groups,
    )
    if found.certified is None:
        return compute_all(schedule, found)
    return schedule.model_copy(update={"evidence": evidence.model_copy(update={"certificate": found})})


def evidence_of(values: list[float], calls: float, steps: int, **more: object) -> Evidence:
    """Returns the evidence of held-out prompts.

    Arguments:
        calls: Steps whose denoiser is called, of a run; the mean where prompts differ.
        more: A certificate, a verdict.
    """
    return Evidence(
        prompts=f"{len(values)} held-out", n=len(values), calls=(round(calls), steps),
        psnr=summary(values), speed=steps / calls, **more,
    )  # fmt: skip


def compute_all(schedule: Schedule, failed: Certificate) -> Schedule:
    """Returns the schedule that skips nothing, and says why: the verdict 'do not cache'."""
    times = schedule.grid.times
    few = (
        f" With {len(times)} steps every one is large, as in distilled models, and there is little to skip."
        if len(times) <= FEW
        else ""
    )
    verdict = f"Do not cache: every step is computed. {failed.sentence}{few}"
    rule = Rule(policy=Plan.of(range(len(times)), times), forecast=Extrapolate(order=0))
    evidence = Evidence(
        prompts=failed.prompts, n=failed.n, calls=(len(times), len(times)), speed=1.0,
        psnr={"mean": CEILING, "p05": CEILING}, certificate=failed, verdict=verdict,
    )  # fmt: skip
    return schedule.model_copy(update={"rules": (rule,), "evidence": evidence})
