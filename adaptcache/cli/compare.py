"""`adaptcache compare`"""

from pathlib import Path
from typing import Annotated

from typer import Option

from . import options as opt
from .files import load_pipeline, open_cache, read_budgets, wrote
from .screen import counted, out, print_json, print_whole, progress


def compare(
    model: opt.Model = opt.DEMO,
    budgets: Annotated[str, Option(help="Fractions of the denoiser calls.")] = "0.5,0.36,0.25,0.18",
    methods: Annotated[str, Option(help="Names, separated by commas. \\[default: all]")] = "",
    steps: opt.Steps = None,
    scheduler: opt.Scheduler = None,
    settings: opt.Set = None,
    prompts: opt.Prompts = None,
    fit_on: opt.FitOn = opt.FIT_ON,
    sweep_on: Annotated[
        int | None,
        opt.prompts(help="Prompts to choose settings of others on. \\[default: as many as --fit-on]", min=1),
    ] = None,
    eval_on: opt.EvalOn = opt.EVAL_ON,
    refine: Annotated[int, Option(help="Also compare with so many times the steps; 0 does not.", min=0)] = 10,
    batch_size: opt.BatchSize = None,
    device: opt.Device = None,
    to: Annotated[Path | None, opt.output("--out", "-o", help="A folder for pictures and JSON.")] = None,
    json: opt.Json = False,
) -> None:
    """Compare with other methods, each at its best setting: same prompts, noise, grid and dtype.

    Methods that decide for each prompt run one prompt at a time, whatever the
    batch size.

    \b
    Examples:
      adaptcache compare                      # the demo model, all methods
      adaptcache compare --model ./my-fine-tune --budgets 0.36 \\
        --methods adaptcache,MagCache --out new
      adaptcache compare --steps 50 --set true_cfg_scale=3 \\
        --set 'negative_prompt=""'
      adaptcache compare --scheduler DPMSolverMultistepScheduler
    """
    from ..comparison.compare import compare as run_comparison
    from ..comparison.compare import find_methods
    from ..comparison.scorer import find_caption_score
    from ..engines.diffusers.engine import sampling_rate
    from ..files import check_writable
    from ..presets import read_prompts, resolve
    from ..report.charts import check_charts
    from .comparison import cost_table, notes_of, result_table, write_folder

    shares = sorted(set(read_budgets("--budgets", budgets)), reverse=True)
    if bad := [share for share in shares if not 0 < share < 1]:
        raise ValueError(f"a budget is a fraction of the calls, between 0 and 1; got {bad[0]:g}")
    names = find_methods([name.strip() for name in methods.split(",")] if methods else [])
    preset = resolve(model).called_with(settings or [])
    known = read_prompts(prompts or preset.prompts)
    eval_prompts = known.held_out[:eval_on]
    if to:
        check_writable(to / "comparison.json")
        check_charts()
    score, measure, why = find_caption_score(preset.folder, eval_prompts)
    pipe = load_pipeline(preset, device, scheduler)
    kept = "finished full runs are kept, the measurements are not"
    said = wrote(to / "comparison.json") if to else ""
    with progress(kept=kept) as report:
        result = run_comparison(
            pipe, known.calibration[:fit_on], eval_prompts, shares, preset.steps if steps is None else steps,
            methods=names, sweep_on=sweep_on, refine=refine, caption_score=score, progress=report,
            batch_size=batch_size or preset.batch_size, cache_dir=open_cache(), pipe_kwargs=preset.call,
        )  # fmt: skip
    data = {"model": preset.name, "scheduler": type(pipe.scheduler).__name__, "call": preset.call,
            "finer": refine, "measure": measure, **result.data()}  # fmt: skip
    data["left_out"] |= {"shown": why} if why else {}
    if to:
        write_folder(to, result, data, eval_prompts, preset.name, sampling_rate(pipe))
    if json:
        print_json(data)
        return
    seen, swept = counted(result.held_out, "held-out prompt"), counted(result.swept, "calibration prompt")
    out.print(
        f"\n{seen}, {result.steps} steps, against the full run; settings of other methods chosen on {swept}; "
        "lead: of adaptcache, with a 95 % interval over prompts:\n"
    )
    print_whole(result_table(result.results, measure))
    if notes := notes_of(result.results):
        out.print("\nnotes:\n" + "\n".join(notes))
    out.print("\ncost before the first use, all budgets together, in denoiser calls for one prompt:\n")
    print_whole(cost_table(result.costs, result.steps))
    for left, reason in data["left_out"].items():
        out.print(f"\nleft out: {left}: {reason}")
    if to:
        out.print(f"\n{said}, and tables, schedules, plots and images beside it")
