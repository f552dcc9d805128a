"""Evidence: what a schedule is worth on prompts that it was not fitted on."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..forecasts.extrapolate import Extrapolate
from ..hooks import SchedulerStep, StepHook
from ..policies.plan import Plan
from ..runs import PromptSet, Setup
from ..schedule.format import Baseline, Certificate, Evidence
from ..schedule.rule import Rule
from ..schedule.schedule import Schedule
from .certify import QualityTarget, certify
from .generate import generate, reference_batch
from .metrics import CEILING, psnr_each, score_images, summary

FEW = 8  # steps of a run in which there is little to skip


def validate(
    setup: Setup,
    prompts: PromptSet,
    schedule: Schedule,
    *,
    target: QualityTarget | None = None,
    groups: Sequence[str] = (),
) -> Schedule:
    """Returns the schedule with the evidence of held-out prompts.

    Arguments:
        prompts: Held-out prompts; their noise is not that of a calibration prompt.
        target: What they should show; where they do not, the schedule computes everything.
        groups: The subject of each prompt, for the certificate.
    """
    jobs, steps = setup.batches(prompts), setup.call.num_inference_steps
    truth: dict[int, list[np.ndarray]] = {}  # of this rank's batches

    def full(number: int) -> None:
        truth[number] = reference_batch(setup, jobs[number])

    def measure(by: Setup, schedule: Schedule | None, run: str, stage: str) -> list[tuple[list[float], float, int]]:
        """Returns by batch its decibels, and how many steps of how many called the denoiser."""

        def work(number: int) -> tuple[list[float], float, int]:
            made = generate(by, jobs[number], schedule)
            return score_images(made.images, truth[number], jobs[number].first, run), made.calls, made.steps

        return setup.ranks.each(len(jobs), work, report(stage))

    def report(stage: str) -> Callable[[int], None]:
        count = setup.stage(stage, len(prompts))
        return lambda batches: count(batches * setup.batch_size)

    setup.ranks.each(len(jobs), full, report("held-out, full"))
    results = measure(setup, schedule, "the run by the schedule", "held-out, by schedule")
    values = [value for found, _, _ in results for value in found]
    whole = schedule.grid.steps if schedule.grid.full else results[0][2]
    calls = int(sum(calls for _, calls, _ in results)) // len(jobs)
    floor = setup.ranks.first(precision_floor(setup, prompts, truth[0]) if setup.ranks.rank == 0 else None)
    baseline, fewer = None, max(1, round(calls * steps / whole))
    if calls < whole:
        few = replace(setup, call=replace(setup.call, num_inference_steps=fewer))
        rows = measure(few, None, f"the run of {fewer} steps", "held-out, fewer steps")
        if rows[0][1] < whole:  # a call that names its own timesteps does not take fewer
            worth = summary([value for found, _, _ in rows for value in found])
            baseline = Baseline(steps=round(rows[0][1]), psnr=worth)
    evidence = evidence_of(values, calls, whole, baseline=baseline, precision_floor=floor)
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


class LastBit(StepHook):
    """Moves each number that the denoiser gives by its last bit, up or down."""

    def model_output(self, step: SchedulerStep) -> Tensor:
        seeded = torch.Generator().manual_seed(step.step.index)
        ways = torch.randn(step.u.shape, generator=seeded).sign().to(step.u)
        return step.u * (1 + torch.finfo(step.u.dtype).eps * ways)


def precision_floor(setup: Setup, prompts: PromptSet, truth: Sequence[np.ndarray]) -> float:
    """Returns decibels of full runs against themselves with the last bit of each output moved.

    A full run on another card, or in another batch, is as far away: what is above is rounding.

    Arguments:
        prompts: The first two of the first batch are run again.
        truth: The images of that batch's full runs.
    """
    known = truth[:2]
    again = generate(setup, prompts[: len(known)], LastBit(), reference=True, stage="precision floor").images
    return float(np.mean(psnr_each(again, known)))


def evidence_of(values: list[float], calls: float, steps: int, **more: object) -> Evidence:
    """Returns the evidence of held-out prompts.

    Arguments:
        calls: Steps whose denoiser is called, of a run; the mean where prompts differ.
        more: A certificate, a baseline, ...
    """
    evidence = Evidence(
        prompts=f"{len(values)} held-out", n=len(values), calls=(round(calls), steps),
        psnr=summary(values), speed=steps / calls, **more,
    )  # fmt: skip
    if evidence.lead is None or min(evidence.lead.values()) >= 0:
        return evidence
    plain = evidence.baseline
    assert plain
    own, few = (f"{worth['mean']:.1f} dB (5th percentile {worth['p05']:.1f})" for worth in (evidence.psnr, plain.psnr))
    verdict = f"Do not cache: {plain.steps} plain steps keep {few} of the full run, this schedule {own}."
    return evidence.model_copy(update={"verdict": verdict})


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
