"""Where schedules go: `adaptcache export` to other engines, `adaptcache push` to the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from ..files import locate
from ..limits import STEPS
from . import options as opt
from .files import Source, find_model, load_pipeline, load_schedule, wrote
from .screen import out, print_json, progress

if TYPE_CHECKING:
    from ..engines.formats import Exported
    from ..presets import Preset
    from ..runs import PromptSet, Setup


def export(
    schedule: Source,
    engine: Annotated[
        str,
        Option(
            "--to", "-t",
            help="diffusers, cache-dit, sglang, xdit, vllm-omni, lightx2v, tensorrt-llm, comfyui-... or table.",
        ),
    ],
    to: Annotated[
        Path | None,
        opt.output("--out", "-o", help="Where it goes. \\[default: NAME.ENGINE with the engine's ending]"),
    ] = None,
    gear: Annotated[int, Option(help="Which plan of the schedule.")] = 0,
    calls: Annotated[int | None, Option(help="Compute this many steps. \\[default: as many as the plan]")] = None,
    steps: Annotated[
        int | None, Option(help="Steps of the run. \\[default: those it was fitted on]", min=1, max=STEPS)
    ] = None,
    eval_on: Annotated[
        int, opt.prompts(help="Measure on this many held-out prompts (diffusers, cache-dit).", min=0)
    ] = 0,
    model: opt.FittedModel = None,
    device: opt.Device = None,
    json: opt.Json = False,
) -> None:  # fmt: skip
    """Write a schedule as the input of another engine, and say what is lost on the way.

    Other engines can only reuse: the computed steps are chosen anew for that
    before the file is written. A table has everything that a schedule has,
    for loops of your own.

    \b
    Examples:
      adaptcache export flux.json --to diffusers   # runs without adaptcache
      adaptcache export flux.json --to cache-dit --out flux.yaml
      adaptcache export flux.json --to table       # all of it: docs/table.md
      adaptcache export emoji.json --to diffusers --eval-on 8
    """
    from ..engines.formats import FORMATS, find_format
    from ..engines.formats import export as export_schedule
    from ..files import check_writable

    given = load_schedule(schedule)
    exported = export_schedule(given, engine, gear=gear, calls=calls, steps=steps)
    name = locate(schedule).stem if locate(schedule).is_file() else given.name
    path = check_writable(to or Path(f"{name}.{engine}{exported.ending}"))
    said, measurable = wrote(path), [form.name for form in FORMATS.values() if form.apply]
    if eval_on and (find_format(engine).apply is None or exported.plan is None):
        raise LookupError(f"--eval-on measures {' and '.join(measurable)}; {engine} does not run here")
    quality = measure_on_preset(exported, find_model(model, [given]), device, eval_on) if eval_on else None
    exported.save(path)
    plan = exported.plan
    if json:
        print_json({
            "out": str(path), "engine": engine, "version": exported.version,
            "mask": list(plan.computed) if plan else None, "predicted": plan.expected if plan else None,
            "measured": quality, "lost": list(exported.lost), "expects": list(exported.expects),
        })  # fmt: skip
        return
    out.print(exported.explained(path))
    if quality:
        out.print(f"measured   {quality['mean']:.1f} dB, 5th percentile {quality['p05']:.1f}, in {engine}")
    out.print(said)


def measure_on_preset(exported: Exported, preset: Preset, device: str | None, count: int) -> dict[str, float]:
    """Measures an export on held-out prompts of a preset."""
    from ..engines.diffusers.engine import DiffusersEngine
    from ..presets import read_prompts
    from ..runs import PipelineCall, PromptSet, Setup

    assert exported.plan is not None
    prompts = read_prompts(preset.prompts)
    pipe, call = load_pipeline(preset, device), PipelineCall(exported.plan.steps, preset.call)
    pipe.set_progress_bar_config(disable=True)  # one bar for all runs is enough
    with progress() as report:
        setup = Setup(DiffusersEngine(pipe, exclusive=True), call, progress=report)
        held_out = PromptSet(prompts.held_out[:count], len(prompts.calibration))
        return measure_export(exported, pipe, setup, held_out)


def measure_export(exported: Exported, pipe: Any, setup: Setup, prompts: PromptSet) -> dict[str, float]:
    """Returns the quality of decoded outputs in decibels against the full run, mean and 5th percentile.

    The engine of `setup` has to run the pipeline itself and no twin, which has no cache.
    """
    from ..engines.formats import apply_export
    from ..evaluation.generate import generate
    from ..evaluation.metrics import psnr_each, summary

    full = generate(setup, prompts, stage="full run").images
    with apply_export(pipe, exported):
        cached = generate(setup, prompts, stage=f"in {exported.engine}").images
    return summary(psnr_each(cached, full))


def push(
    schedule: Source,
    to: Annotated[str, Argument(help="A repository of the hub (user/repo), or a folder (./mine, /mine).")],
    name: Annotated[str | None, Option(help="Tells schedules of one place apart.")] = None,
    revision: Annotated[str | None, Option(help="The branch to put it on.")] = None,
    private: Annotated[bool | None, Option("--private/--public", help="Of a new repository.")] = None,
    create_pr: Annotated[bool, Option(help="Ask for a review instead of committing.")] = False,
    message: Annotated[str | None, Option(help="What the commit says.")] = None,
) -> None:
    """Put a schedule and a model card on the hub, or into a folder in the same form.

    Log in before with: hf auth login

    \b
    Examples:
      adaptcache push schedules/flux-28-2.8x.json me/flux-schedules
      adaptcache push schedules/flux-28-4x.json me/flux-schedules --name fast
      adaptcache push schedules/flux-28-2.8x.json ./flux-schedules
    """
    from ..hub import CONFIG

    pushed = load_schedule(schedule)
    if to.startswith((".", "/", "~")) or Path(to).is_dir():
        given = {"--revision": revision, "--private/--public": private, "--create-pr": create_pr or None,
                 "--message": message}  # fmt: skip
        if unused := [option for option, value in given.items() if value is not None]:
            raise ValueError(f"{to} is a folder: leave out what is for repositories of the hub: {', '.join(unused)}")
        said = wrote(locate(to) / "/".join(filter(None, [name, CONFIG])))
        pushed.save_pretrained(to, name=name)
        out.print(f"{said} and its model card")
        return
    address = pushed.push_to_hub(
        to, name=name, revision=revision, private=private, create_pr=create_pr, message=message
    )
    out.print(f"pushed to {address}")
