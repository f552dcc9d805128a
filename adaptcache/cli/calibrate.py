"""`adaptcache calibrate`"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from .files import Loading, default_name, load_pipeline, open_cache, quality_words, wrote
from .options import (
    DEMO,
    BatchSize,
    Compile,
    Device,
    Dtype,
    Json,
    Lora,
    Model,
    Name,
    Offload,
    Out,
    Prompts,
    PublishedMethod,
    Scheduler,
    Seed,
    Set,
    Steps,
)  # fmt: skip
from .screen import counted, out, print_json, progress

if TYPE_CHECKING:
    from ..calibration.estimate import Estimate, Size
    from ..schedule.schedule import Schedule

FIT_ON, EVAL_ON, EVERY = 16, 32, 1_000_000  # prompts
EFFORT = 12.0  # as `calibration.search` has it, which needs torch


def calibrate(
    model: Model = DEMO,
    speed: Annotated[float | None, Option(help="Steps for each call made. \\[default: 2.8]")] = None,
    budget: Annotated[float | None, Option(help="Fraction of the calls made, instead of --speed.")] = None,
    steps: Steps = None,
    scheduler: Scheduler = None,
    settings: Set = None,
    prompts: Prompts = None,
    fit_on: Annotated[int, Option(help="Calibration prompts at most.", min=1)] = FIT_ON,
    eval_on: Annotated[
        int | None, Option(help="Held-out prompts at most. \\[default: 32, or all to certify]", min=0)
    ] = None,
    method: PublishedMethod = None,
    per_instance: Annotated[
        bool, Option("--per-instance", help="A plan for each block (--site blocks) or layer, by its measured time.")
    ] = False,
    site: Annotated[str, Option(help="With --per-instance: blocks, attention, cross-attention or mlp.")] = "blocks",
    trials: Annotated[
        int,
        Option(help="With --per-instance: plans that optuna tries, in runs on the calibration prompts.", min=0),
    ] = 0,
    reference_steps: Annotated[
        int | None, Option(help="Match a run of this many steps: corrects the sampler's error too.")
    ] = None,
    gears: Annotated[
        str | None, Option(help="Budgets of several plans: each run takes the cheapest for --min-psnr.")
    ] = None,
    min_psnr: Annotated[float | None, Option(help="Decibels against the full run to be reached.")] = None,
    max_failure_rate: Annotated[float, Option(help="Share of prompts that may stay below it.")] = 0.05,
    confidence: Annotated[float, Option(help="How sure a certificate has to be.")] = 0.95,
    certify: Annotated[
        bool, Option("--certify", help="Test it on held-out prompts; what fails computes every step.")
    ] = False,
    effort: Annotated[
        float, Option(help="Full runs of one prompt that a search of the plan costs at most.", min=0)
    ] = EFFORT,
    matrix: Annotated[
        bool, Option("--matrix", help="Measure it at other steps, guidance and sizes too: evidence.matrix.")
    ] = False,
    branches: Annotated[
        bool,
        Option(help="With guidance, use the output with the prompt too; other engines show the guided one alone."),
    ] = True,
    times: Annotated[str, Option(help="'own' noise levels, a step a call; or steps of the 'grid'.")] = "grid",
    seed: Seed = 0,
    batch_size: BatchSize = None,
    device: Device = None,
    offload: Offload = "none",
    dtype: Dtype = None,
    compile: Compile = False,
    lora: Lora = None,
    name: Name = None,
    to: Out = None,
    cache: Annotated[bool, Option(help="Keep full runs for the next target.")] = True,
    dry_run: Annotated[bool, Option("--dry-run", help="Time a few steps, say what it would cost, and stop.")] = False,
    json: Json = False,
) -> None:
    """Fit a schedule: profile, plan, match, validate. Writes one JSON file.

    Another target on the same model, steps and prompts costs seconds: full runs are kept.

    \b
    Examples:
      adaptcache calibrate                                  # the demo model, 2.8x
      adaptcache calibrate --model flux --speed 2.8
      adaptcache calibrate --model ./my-fine-tune --steps 40 --budget 0.25 --prompts mine.txt --set height=768
      adaptcache calibrate --model emoji-flux-32 --gears 0.18,0.25,0.36,0.5 --min-psnr 40 --prompts emoji-varied
      adaptcache calibrate --model emoji-flux-32 --speed 4 --min-psnr 40 --certify --prompts emoji-varied
      adaptcache calibrate --per-instance --steps 8 --budget 0.7    # a plan for each block, for few steps
      adaptcache calibrate --method magcache --budget 0.5   # what was published, fitted to this model
      adaptcache calibrate --model flux --offload group --dry-run    # a 24 GB card: what it costs there
      torchrun --nproc_per_node 8 -m adaptcache calibrate --model flux    # on eight GPUs
    """
    from ..calibration.calibrate import calibrate as fit_schedule
    from ..calibration.calibrate import calls_for
    from ..calibration.estimate import Size
    from ..calibration.match import Fit
    from ..distributed import joined
    from ..files import check_writable
    from ..presets import read_prompts, resolve
    from ..schedule.methods import find_method

    if per_instance:
        if method:
            raise ValueError(f"--per-instance is a method of its own: leave --method {method} out")
        method = "planned-blocks"
    elif site != "blocks" or trials:
        given = f"--site {site}" if site != "blocks" else f"--trials {trials}"
        raise ValueError(f"{given} goes with --per-instance; without it whole steps are skipped")
    loading = Loading(offload, dtype, compile, lora or ())
    if dry_run and (method or reference_steps or matrix or times == "own"):
        raise ValueError(
            "--dry-run counts schedules for a speed, a budget or gears: leave --method, --reference-steps, --matrix "
            "and --times own out"
        )
    if method:
        find_method(method)
        ours_only = {"--reference-steps": reference_steps, "--gears": gears, "--certify": certify}
        if wrong := [option for option, given in ours_only.items() if given]:
            raise ValueError(f"published methods are fitted as they are: give --method or {wrong[0]}")
    with joined() as ranks:
        if method and ranks.size > 1:
            raise ValueError("published methods are fitted in one process; start it without a launcher")
        preset = resolve(model).called_with(settings or [])
        budgets = parse_gears(gears)
        if speed is None and budget is None and not budgets:
            speed = 2.8
        steps = preset.steps if steps is None else steps
        known = read_prompts(prompts or preset.prompts)
        if not name:
            calls = None if budgets else calls_for(steps, budget, speed)
            name = default_name(
                preset.name, steps, method,
                f"{steps / calls:.2g}x" if calls else f"gears-{gears}-{min_psnr or 0:g}dB",
                *(settings or ()), *loading.words, scheduler, reference_steps and f"reference{reference_steps}",
                known.name if prompts and prompts != preset.prompts else None,
                f"fit{fit_on}" if fit_on != FIT_ON else None,
                f"eval{eval_on}" if eval_on not in (None, EVAL_ON) else None,
                f"seed{seed}" if seed else None, "certified" if certify else None,
                *(quality_words(min_psnr, max_failure_rate, confidence)[bool(budgets) :]),
                f"trials{trials}" if trials else None, f"effort{effort:g}" if effort != EFFORT else None,
                "own" if times == "own" else None,
                None if branches else "no-branches",
            )  # fmt: skip
        eval_on = (EVERY if certify else EVAL_ON) if eval_on is None else eval_on
        target = to or Path("schedules") / f"{name}.json"
        if ranks.rank == 0:
            check_writable(target)
        cache_of_runs = open_cache() if cache else None
        calibration = known.calibration[:fit_on]
        share = -(-len(calibration) // ranks.size)  # so that no rank has nothing to do
        pipe = load_pipeline(preset, device or ranks.device, scheduler, loading)
        held_out, size = known.held_out[:eval_on], batch_size or min(preset.batch_size, share)
        goal: dict[str, Any] = {
            "speed": speed, "budget": budget, "gears": budgets, "min_psnr": min_psnr, "certify": certify,
            "max_failure_rate": max_failure_rate, "confidence": confidence, "groups": known.groups[:eval_on],
            "effort": effort,
        }  # fmt: skip
        options: dict[str, Any] = {
            "seed": seed, "cache": cache_of_runs, "ranks": ranks, "batch_size": size, "pipe_kwargs": preset.call,
        }  # fmt: skip
        if dry_run:
            found = _estimate(pipe, (calibration, held_out), goal, steps, options | {"progress": False})
            return _print_estimate(found, json) if ranks.rank == 0 else None
        goes_on = "finished full runs are kept in {}: the same command goes on from them"
        kept = goes_on.format(cache_of_runs.folder) if cache_of_runs else "nothing is kept"
        first = ""
        if not (method or budgets):
            calls = calls_for(steps, budget, speed)
            first = announce(Size(steps, calls, len(calibration), len(held_out), effort, size))
        with progress(ranks.rank == 0, kept, first) as report:
            schedule = fit_schedule(
                pipe, calibration, steps, eval_prompts=held_out, **goal, **options, method=method,
                params={"site": site, "trials": trials} if per_instance else None,
                reference_steps=reference_steps, times=times, matrix=matrix, name=name,
                fit=Fit() if branches else Fit(features=("past_x", "x", "x0")), progress=report,
            )  # fmt: skip
        said = wrote(target)
        if ranks.rank == 0:
            schedule.save(target)
    if ranks.rank == 0:
        _print(schedule, target, said, json)


def announce(size: Size) -> str:
    """Returns what a calibration is about to run, without what it may find in the cache."""
    passes = sum(size.passes().values())
    runs = counted(-(-passes // size.steps), "full run")
    return (
        f"{counted(size.prompts, 'prompt')} to fit on, {size.held_out} held out: about {passes:,} passes of the "
        f"denoiser, as many as {runs} of one prompt; what is kept of before is not run again"
    )


def _estimate(pipe: Any, prompts: tuple[Sequence[Any], ...], goal: Any, steps: int, options: Any) -> Estimate:
    from ..calibration.calibrate import Goal
    from ..calibration.estimate import estimate
    from ..engines import make_setup
    from ..runs import PromptSet

    setup, _ = make_setup(pipe, steps, options)
    first = PromptSet.of(prompts[0])
    held_out, asked = PromptSet.of(prompts[1], len(first)), Goal(**goal)
    asked.check(setup, first, held_out)
    for given in (first, held_out):
        setup.engine.preflight(setup.call, given)
    return estimate(setup, first, held_out, asked)


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


def _print(schedule: Schedule, target: Path, said: str, json: bool) -> None:
    from .show import describe

    if json:
        evidence = schedule.evidence.model_dump(by_alias=True, exclude_none=True) if schedule.evidence else None
        print_json({"schedule": str(target), "name": schedule.name, "evidence": evidence})
    else:
        describe(schedule)
        out.print(said)


def parse_gears(text: str | None) -> list[float]:
    """Returns the budgets in a list that is separated by commas."""
    try:
        return [float(part) for part in text.split(",")] if text else []
    except ValueError:
        raise ValueError(f"--gears takes budgets such as 0.18,0.25,0.36,0.5, got {text!r}") from None
