"""Evidence: what a schedule is worth on prompts that it was not fitted on, and under other arguments."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..forecasts.extrapolate import Extrapolate
from ..hooks import SchedulerStep, StepHook
from ..policies.plan import Plan
from ..runs import PipelineCall, PromptSet, Setup
from ..schedule import Rule, Schedule
from ..schedule.format import Baseline, Cell, Certificate, Evidence
from .certify import QualityTarget, certify
from .generate import Generation, generate, reference_batch, reference_images
from .metrics import CEILING, psnr_each, score_images, summary

FEW = 8  # steps of a run in which there is little to skip
PROMPTS = 8  # of a cell of the matrix
GUIDANCE = ("guidance_scale", "true_cfg_scale")
FACTORS = {"num_inference_steps": (0.7, 1.5), "guidance": (0.75, 1.5), "size": (0.75, 1.5)}
MULTIPLE = 16  # of pixels


def validate(
    setup: Setup,
    prompts: PromptSet,
    schedule: Schedule,
    *,
    target: QualityTarget | None = None,
    groups: Sequence[str] = (),
) -> Schedule:
    """Returns the schedule with the evidence of held-out prompts, whose noise is not that of a calibration prompt.

    Where they do not show the target, the schedule computes everything. `groups` has the subject of each prompt, for
    the certificate.
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
    settings = [f"{evidence.calls[0]} of {evidence.calls[1]} calls"]
    found = certify([values], target, settings=settings, prompts=evidence.prompts, groups=groups)
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

    A full run on another card, or in another batch, is as far away: what is above is rounding. The first two prompts
    of the first batch, whose full runs gave `truth`, are run again.
    """
    known = truth[:2]
    again = generate(setup, prompts[: len(known)], LastBit(), reference=True, stage="precision floor").images
    return float(np.mean(psnr_each(again, known)))


def evidence_of(values: list[float], calls: float, steps: int, **more: object) -> Evidence:
    """Returns the evidence of held-out prompts, with so many calls a run (the mean where prompts differ)."""
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


def full_rule(times: tuple[float, ...]) -> Rule:
    """Returns the rule that computes every step."""
    return Rule(policy=Plan.of(range(len(times)), times), forecast=Extrapolate(order=0))


def compute_all(schedule: Schedule, failed: Certificate) -> Schedule:
    """Returns the schedule that skips nothing, and says why: the verdict 'do not cache'."""
    times = schedule.grid.times
    verdict = f"Do not cache: every step is computed. {failed.sentence}"
    if len(times) <= FEW:
        verdict += f" With {len(times)} steps every one is large, as in distilled models, and there is little to skip."
    evidence = Evidence(
        prompts=failed.prompts, n=failed.n, calls=(len(times), len(times)), speed=1.0,
        psnr={"mean": CEILING, "p05": CEILING}, certificate=failed, verdict=verdict,
    )  # fmt: skip
    return schedule.model_copy(update={"rules": (full_rule(times),), "evidence": evidence})


# The same under other arguments: a matrix of sizes, step counts and guidance.


def other_calls(call: PipelineCall) -> list[dict[str, Any]]:
    """Returns what is changed of a call by default: steps, guidance and size, one at a time."""
    cells: list[dict[str, Any]] = []
    for factor in FACTORS["num_inference_steps"]:
        cells.append({"num_inference_steps": max(2, round(factor * call.num_inference_steps))})
    for name in GUIDANCE:
        value = call.pipe_kwargs.get(name)
        if isinstance(value, (int, float)) and value > 1:
            cells += [{name: round(value * factor, 2)} for factor in FACTORS["guidance"]]
    sizes = {
        name: call.pipe_kwargs[name] for name in ("height", "width") if isinstance(call.pipe_kwargs.get(name), int)
    }
    for factor in FACTORS["size"] if sizes else ():
        cells.append({name: MULTIPLE * max(1, round(size * factor / MULTIPLE)) for name, size in sizes.items()})
    here = {"num_inference_steps": call.num_inference_steps, **call.pipe_kwargs}
    return [cell for cell in cells if any(here[name] != value for name, value in cell.items())]


def measure_matrix(
    setup: Setup, prompts: PromptSet, schedule: Schedule, cells: Sequence[Mapping[str, Any]] | None = None
) -> Schedule:
    """Returns the schedule with what it is worth under other arguments, each beside as many plain steps.

    The first few held-out prompts are taken. `cells` has by cell the arguments that differ; without them other steps,
    guidance and sizes are.
    """
    assert schedule.evidence
    found = [
        measure_cell(setup, prompts[:PROMPTS], schedule, dict(changed))
        for changed in (other_calls(setup.call) if cells is None else cells)
    ]
    return schedule.model_copy(update={"evidence": schedule.evidence.model_copy(update={"matrix": tuple(found)})})


def measure_cell(setup: Setup, prompts: PromptSet, schedule: Schedule, changed: dict[str, Any]) -> Cell:
    """Returns what a schedule is worth under other arguments."""
    call = setup.call.changed(changed)
    here, what = replace(setup, call=call, refine=1), ", ".join(f"{name} {value}" for name, value in changed.items())
    truth = reference_images(here, prompts)

    def worth(made: Generation) -> dict[str, float]:
        return summary(score_images(made.images, truth, prompts.first, f"the run at {what}"))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it was fitted elsewhere is the point
        made = generate(here, prompts, schedule, stage=f"at {what}")
    fewer = replace(here, call=replace(call, num_inference_steps=max(1, round(made.calls))))
    plain = generate(fewer, prompts, stage=f"at {what}, fewer steps")
    baseline = Baseline(steps=round(plain.calls), psnr=worth(plain))
    calls = round(made.calls), call.num_inference_steps
    return Cell(changed=changed, n=len(prompts), calls=calls, psnr=worth(made), baseline=baseline)
