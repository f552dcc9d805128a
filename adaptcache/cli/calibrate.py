"""`adaptcache calibrate`"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from . import options as opt
from .files import changed, default_name, load_pipeline, open_cache, quality_words, read_budgets, wrote
from .screen import counted, out, print_json, progress
from .show import describe

if TYPE_CHECKING:
    from ..calibration.estimate import Estimate, Size

EFFORT = 12.0  # as `calibration.search` has it, which needs torch

published = partial(Option, rich_help_panel="Published methods")
fitting = partial(Option, rich_help_panel="How it is fitted")


def calibrate(
    model: opt.Model = opt.DEMO,
    speed: Annotated[float | None, Option(help="Steps for each call made. \\[default: 2.8]")] = None,
    budget: Annotated[float | None, Option(help="Fraction of the calls made, instead of --speed.")] = None,
    steps: opt.Steps = None,
    scheduler: opt.Scheduler = None,
    settings: opt.Set = None,
    prompts: opt.Prompts = None,
    fit_on: opt.FitOn = opt.FIT_ON,
    eval_on: Annotated[
        int | None, opt.prompts(help="Held-out prompts at most. \\[default: 32, or all to certify]", min=0)
    ] = None,
    method: Annotated[
        str | None,
        published(
            "--method", help="Fit it instead: `adaptcache methods` lists them.", autocompletion=opt.complete_methods
        ),
    ] = None,
    per_instance: Annotated[
        bool, published("--per-instance", help="A plan for each block, or layer (--site), by its measured time.")
    ] = False,
    site: Annotated[str, published(help="With --per-instance: blocks, attention, cross-attention or mlp.")] = "blocks",
    trials: Annotated[
        int, published(help="With --per-instance: plans that optuna tries, in runs on the calibration prompts.", min=0)
    ] = 0,
    reference_steps: Annotated[
        int | None, fitting(help="Match a run of this many steps: corrects the sampler's error too.", min=1)
    ] = None,
    gears: Annotated[
        str | None, opt.quality(help="Budgets of several plans: each run takes the cheapest for --min-psnr.")
    ] = None,
    min_psnr: Annotated[float | None, opt.quality(help="Decibels against the full run to be reached.")] = None,
    max_failure_rate: opt.MaxFailureRate = opt.MAX_FAILURE_RATE,
    confidence: opt.Confidence = opt.CONFIDENCE,
    certify: Annotated[
        bool, opt.quality("--certify", help="Test it on held-out prompts; what fails computes every step.")
    ] = False,
    effort: Annotated[
        float, fitting(help="Full runs of one prompt that a search of the plan costs at most.", min=0, max=1e6)
    ] = EFFORT,
    matrix: Annotated[
        bool, opt.prompts("--matrix", help="Measure it at other steps, guidance and sizes too: evidence.matrix.")
    ] = False,
    branches: Annotated[
        bool,
        fitting(help="With guidance, use the output with the prompt too; other engines show the guided one alone."),
    ] = True,
    times: Annotated[
        str, fitting(help="grid: some steps of the sampler's grid are skipped; own: a step a call, at its own times.")
    ] = "grid",
    seed: opt.Seed = 0,
    batch_size: opt.BatchSize = None,
    device: opt.Device = None,
    offload: opt.Offload = "none",
    dtype: opt.Dtype = None,
    compile: opt.Compile = False,
    lora: opt.Lora = None,
    name: opt.Name = None,
    to: opt.Out = None,
    cache: Annotated[bool, opt.output(help="Keep full runs for the next target.")] = True,
    dry_run: Annotated[
        bool, opt.output("--dry-run", help="Time a few steps, say what it would cost, and stop.")
    ] = False,
    json: opt.Json = False,
) -> None:
    """Fit a schedule: profile, plan, match, validate. Writes one JSON file.

    Another target on the same model, steps and prompts costs seconds: full
    runs are kept.

    \b
    Examples:
      adaptcache calibrate                          # the demo model, 2.8x
      adaptcache calibrate --model flux --speed 2.8
      adaptcache calibrate --model ./my-fine-tune --steps 40 --budget 0.25 \\
        --prompts mine.txt --set height=768
      adaptcache calibrate --model emoji-flux-32 --prompts emoji-varied \\
        --gears 0.18,0.25,0.36,0.5 --min-psnr 40    # each run takes its plan
      adaptcache calibrate --model emoji-flux-32 --prompts emoji-varied \\
        --speed 4 --min-psnr 40 --certify
      adaptcache calibrate --per-instance --steps 8 --budget 0.7
      adaptcache calibrate --method magcache --budget 0.5
      adaptcache calibrate --model flux --offload group --dry-run   # on 24 GB
      torchrun --nproc_per_node 8 -m adaptcache calibrate --model flux
    """
    from ..calibration.calibrate import Goal, calls_for
    from ..calibration.calibrate import calibrate as fit_schedule
    from ..calibration.estimate import Size, estimate
    from ..calibration.match import Fit
    from ..distributed import joined
    from ..engines import make_setup
    from ..files import check_writable
    from ..presets import read_prompts, resolve
    from ..runs import PromptSet

    if per_instance:
        if method:
            raise ValueError(f"--per-instance is a method of its own: leave --method {method} out")
        method = "planned-blocks"
    elif site != "blocks" or trials:
        given = f"--site {site}" if site != "blocks" else f"--trials {trials}"
        raise ValueError(f"{given} goes with --per-instance; without it whole steps are skipped")
    if dry_run and (method or reference_steps or matrix or times == "own"):
        raise ValueError(
            "--dry-run counts schedules for a speed, a budget or gears: leave --method, --reference-steps, --matrix "
            "and --times own out"
        )
    with joined() as ranks:
        preset = resolve(model).called_with(settings or [])
        steps = preset.steps if steps is None else steps
        known = read_prompts(prompts or preset.prompts)
        most = (opt.EVERY if certify else opt.EVAL_ON) if eval_on is None else eval_on
        calibration = PromptSet(known.calibration[:fit_on])
        held_out = PromptSet(known.held_out[:most], len(calibration))
        budgets = read_budgets("--gears", gears) if gears else []
        goal = Goal(
            speed=2.8 if speed is None and budget is None and not budgets else speed, budget=budget, gears=budgets,
            method=method, params={"site": site, "trials": trials} if per_instance else None, min_psnr=min_psnr,
            max_failure_rate=max_failure_rate, confidence=confidence, certify=certify, groups=known.groups[:most],
            reference_steps=reference_steps, effort=effort, times=times,  # type: ignore[arg-type]
            matrix=matrix, fit=Fit() if branches else Fit(features=("past_x", "x", "x0")), name=name or None,
        )  # fmt: skip
        goal.check(steps, calibration, held_out, ranks.size)
        calls = 0 if budgets else calls_for(steps, budget, goal.speed)
        name = name or default_name(
            preset.name, steps, method,
            f"{steps / calls:.2g}x" if calls else f"gears-{gears}-{min_psnr or 0:g}dB",
            *(settings or ()), dtype, *(f"lora-{one}" for one in lora or ()),
            scheduler, reference_steps and f"reference{reference_steps}",
            known.name if prompts and prompts != preset.prompts else None,
            *changed(fit=(fit_on, opt.FIT_ON), eval=(eval_on, opt.EVAL_ON), seed=(seed, 0)),
            "certified" if certify else None,
            *(quality_words(min_psnr, max_failure_rate, confidence)[bool(budgets) :]),
            *changed(trials=(trials, 0), effort=(effort, EFFORT)), "own" if times == "own" else None,
            None if branches else "no-branches",
        )  # fmt: skip
        target = to or Path("schedules") / f"{name}.json"
        if ranks.rank == 0:
            check_writable(target)
        cache_of_runs = open_cache() if cache else None
        share = -(-len(calibration) // ranks.size)  # so that no rank has nothing to do
        runs: dict[str, Any] = {
            "seed": seed, "batch_size": batch_size or min(preset.batch_size, share), "cache": cache_of_runs,
            "ranks": ranks, "pipe_kwargs": preset.call,
        }  # fmt: skip
        pipe = load_pipeline(
            preset, device or ranks.device, scheduler, offload=offload, dtype=dtype, compile=compile, loras=lora or ()
        )
        if dry_run:
            setup = make_setup(pipe, steps, runs | {"progress": False})
            for one in (calibration, held_out):
                setup.engine.preflight(setup.call, one)
            found = estimate(setup, calibration, held_out, goal)
            return _print_estimate(found, json) if ranks.rank == 0 else None
        goes_on = "finished full runs are kept in {}: the same command goes on from them"
        kept = goes_on.format(cache_of_runs.folder) if cache_of_runs else "nothing is kept"
        size = Size(steps, calls, len(calibration), len(held_out), effort, runs["batch_size"])
        first = "" if method or budgets else announce(size)
        with progress(ranks.rank == 0, kept, first) as report:
            schedule = fit_schedule(
                pipe, calibration, steps, eval_prompts=held_out, progress=report, **runs,
                **(vars(goal) | {"name": name}),
            )  # fmt: skip
        said = wrote(target)
        if ranks.rank == 0:
            schedule.save(target)
    if ranks.rank:
        return
    if json:
        evidence = schedule.evidence.data() if schedule.evidence else None
        print_json({"schedule": str(target), "name": schedule.name, "evidence": evidence})
    else:
        describe(schedule)
        out.print(said)


def announce(size: Size) -> str:
    """Returns what a calibration is about to run, without what it may find in the cache."""
    passes = sum(size.passes().values())
    runs = counted(-(-passes // size.steps), "full run")
    return (
        f"{counted(size.prompts, 'prompt')} to fit on, {size.held_out} held out: about {passes:,} passes of the "
        f"denoiser, as many as {runs} of one prompt; what is kept of before is not run again"
    )


def _print_estimate(found: Estimate, json: bool) -> None:
    from rich.filesize import decimal

    from ..calibration.refine import REFINING

    stages = found.size.passes()
    memory = {"memory": found.memory, "device_memory": found.device_memory}
    if json:
        return print_json({
            "passes": stages, "seconds": found.seconds, "step_seconds": found.step, "disk": found.disk, **memory,
        })  # fmt: skip
    at_most = " at most" if REFINING in stages else ""
    for stage, count in {**stages, "in all": sum(stages.values())}.items():
        out.print(f"{stage:26} {count:>9,} passes of the denoiser{at_most * (stage in (REFINING, 'in all'))}")
    out.print(f"\n{found.seconds / 60:.1f} minutes, by {found.step:.3g} s a step of one batch")
    used = [f"{decimal(found.memory)} of memory"]
    if found.device_memory is not None:
        used.append(f"{decimal(found.device_memory)} on the device")
    out.print(f"{', '.join(used)}, {decimal(found.disk)} of disk")
