"""The evidence matrix: what a schedule is worth at other sizes, step counts and guidance than the calibration had."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..runs import PipelineCall, PromptSet, Setup
from ..schedule.format import Baseline, Cell
from ..schedule.schedule import Schedule
from .generate import Generation, generate, reference_images
from .metrics import score_images, summary

PROMPTS = 8  # of a cell
GUIDANCE = ("guidance_scale", "true_cfg_scale")
FACTORS = {"num_inference_steps": (0.7, 1.5), "guidance": (0.75, 1.5), "size": (0.75, 1.5)}
MULTIPLE = 16  # of pixels

Changed = Mapping[str, Any]


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
    setup: Setup, prompts: PromptSet, schedule: Schedule, cells: Sequence[Changed] | None = None
) -> Schedule:
    """Returns the schedule with what it is worth under other arguments, each beside as many plain steps.

    Arguments:
        prompts: Held-out prompts, of which the first few are taken.
        schedule: What was fitted, with evidence.
        cells: By cell the arguments that differ; None takes other steps, guidance and sizes.
    """
    assert schedule.evidence
    few, found = prompts[:PROMPTS], list[Cell]()
    for changed in other_calls(setup.call) if cells is None else cells:
        rest = dict(changed)
        steps = rest.pop("num_inference_steps", setup.call.num_inference_steps)
        call = replace(setup.call, num_inference_steps=steps, pipe_kwargs={**setup.call.pipe_kwargs, **rest})
        here = replace(setup, call=call, refine=1)
        what = ", ".join(f"{name} {value}" for name, value in changed.items())
        truth = reference_images(here, few)

        def worth(made: Generation, truth: list[Any] = truth, what: str = what) -> dict[str, float]:
            return summary(score_images(made.images, truth, few.first, f"the run at {what}"))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it was fitted elsewhere is the point
            made = generate(here, few, schedule, stage=f"at {what}")
        fewer = replace(here, call=replace(call, num_inference_steps=max(1, round(made.calls))))
        plain = generate(fewer, few, stage=f"at {what}, fewer steps")
        baseline = Baseline(steps=round(plain.calls), psnr=worth(plain))
        calls = (round(made.calls), steps)
        found.append(Cell(changed=dict(changed), n=len(few), calls=calls, psnr=worth(made), baseline=baseline))
    return schedule.model_copy(update={"evidence": schedule.evidence.model_copy(update={"matrix": tuple(found)})})
