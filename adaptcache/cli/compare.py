"""`adaptcache compare`: what it says on the screen, and what it leaves in a folder: numbers, tables, plots, images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.filesize import decimal
from rich.table import Table
from rich.text import Text
from typer import Option

from . import options as opt
from .files import load_pipeline, open_cache, read_budgets, wrote
from .screen import counted, new_table, out, print_json, print_whole, progress

if TYPE_CHECKING:
    from ..comparison.compare import Comparison
    from ..comparison.runner import Cost, MethodResult
    from ..runs import Prompt

OURS = "adaptcache"
Rows = tuple[list[str], list[list[str]]]  # headings, and rows; a row that ends early ends with a note
PROBE = 0.05  # calls: less than that is no probe
ROWS = 6  # prompts whose images are kept


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

    shares = sorted(set(read_budgets("--budgets", budgets)), reverse=True)
    if bad := [share for share in shares if not 0 < share < 1]:
        raise ValueError(f"a budget is a fraction of the calls, between 0 and 1; got {bad[0]:g}")
    if refine == 1:
        raise ValueError("--refine 1 is the full run itself: take 2 or more times the steps, or 0 for none")
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


# What is shown, and written


def result_rows(results: Sequence[MethodResult], measure: str = "") -> Rows:
    """Returns what methods reached, as text, with the caption score where that has a name."""
    exact, lead = any(one.exact for one in results), any(one.lead for one in results)
    headings = ["budget", "method", "PSNR dB", "5th pct", *["lead dB"] * lead, "SSIM", "latent error"]
    headings += ["to exact dB"] * exact + [measure] * bool(measure)
    headings += ["calls", "block calls", "loop", "kept"]
    rows = []
    for one in results:
        row = [f"{one.budget:g}", one.method]
        if one.note or one.psnr is None or one.memory is None:
            rows.append([*row, one.note])
            continue
        same = one.psnr["mean"] >= 100
        row += ["exact" if same else f"{one.psnr['mean']:.1f}", "" if same else f"{one.psnr['p05']:.1f}"]
        row += [lead_text(one)] * lead
        row += [f"{one.ssim['mean']:.4f}" if one.ssim else "-", f"{one.latent:.4f}"]
        row += [f"{one.exact['mean']:.1f}" if one.exact else "-"] * exact
        row += ["-" if one.caption_score is None else f"{one.caption_score:.2f}"] * bool(measure)
        rows.append([*row, calls_text(one), f"{one.blocks:.0f}", f"{one.speed:.2f}x", decimal(one.memory)])
    return headings, rows


def lead_text(one: MethodResult) -> str:
    """Returns our lead over a method with its confidence interval."""
    if one.lead is None:
        return ""
    half = one.lead["ci95"]
    return f"{one.lead['mean']:+.1f}" + ("" if half is None else f" ± {half:.1f}")


def calls_text(one: MethodResult) -> str:
    """Returns the calls of a method, and those without its probe if it has one."""
    assert one.calls is not None
    probed = one.unprobed is not None and one.calls - one.unprobed > PROBE
    return f"{one.calls:.1f}" + (f" ({one.unprobed:.1f} without probe)" if probed else "")


def cost_rows(costs: Sequence[Cost], steps: int) -> Rows:
    """Returns what methods cost before their first use, as text."""
    rows = []
    for cost in costs:
        calls = sum(cost.calibration.values())
        parts = ", ".join(f"{stage} {work:.0f}" for stage, work in cost.calibration.items())
        row = [cost.method, f"{calls:.0f}", str(cost.tried or ""), f"{cost.settings:.0f}"]
        total = f"{(calls + cost.settings) / steps:.0f}"
        rows.append([*row, total, parts if len(cost.calibration) > 1 else ""])
    return ["method", "calibration", "settings", "their calls", "in full runs", "of the calibration"], rows


def screen(rows: Rows, left: Sequence[str]) -> Table:
    """Returns a table for the screen; our own rows are bold."""
    headings, cells = rows
    view = new_table(*headings, right=[one for one in headings if one not in left], whole=headings)
    for row in cells:
        view.add_row(*(Text(cell, "bold" if cell == OURS else "") for cell in row))
    return view


def result_table(results: Sequence[MethodResult], measure: str = "") -> Table:
    """Returns the table of what methods reached; those that reached nothing are in the notes."""
    return screen(result_rows([one for one in results if not one.note], measure), ("method",))


def notes_of(results: Sequence[MethodResult]) -> list[str]:
    """Returns a line for each method without numbers somewhere, and for each setting that was over budget."""
    noted: dict[str, list[MethodResult]] = {}
    for one in results:
        if one.note:
            noted.setdefault(one.method, []).append(one)
    at = {method: ", ".join(f"{one.budget:g}" for one in some) for method, some in noted.items()}
    return [f"{method} at {at[method]}: {some[0].note}" for method, some in noted.items()] + [
        f"{one.method} at {one.budget:g}: over budget on the held-out prompts with "
        f"{', '.join(f'{calls:.1f}' for calls in one.over_budget)} calls; the next setting below was taken"
        for one in results
        if one.over_budget and not one.note
    ]


def cost_table(costs: Sequence[Cost], steps: int) -> Table:
    """Returns the table of what methods cost before their first use."""
    return screen(cost_rows(costs, steps), ("method", "of the calibration"))


def write_markdown(
    path: Path, results: Sequence[MethodResult], costs: Sequence[Cost], steps: int, measure: str = ""
) -> Path:
    """Writes both tables as Markdown."""
    from ..files import write_atomically

    text = "\n\n".join(map(markdown, (result_rows(results, measure), cost_rows(costs, steps))))
    return write_atomically(path, (text + "\n").encode())


def markdown(rows: Rows) -> str:
    """Returns a table as Markdown."""
    width = len(rows[0])
    table = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * width]
    for row in rows[1]:
        cells = [f"**{cell}**" if cell == OURS else cell for cell in row]
        table.append("| " + " | ".join([*cells, *[""] * (width - len(cells))]) + " |")
    return "\n".join(table)


def write_folder(
    folder: Path, result: Comparison, data: Mapping[str, Any], prompts: Sequence[Prompt], name: str,
    rate: int | None = None,
) -> None:  # fmt: skip
    """Writes a comparison: its numbers as they are printed, schedules by the model's name, pictures and sounds."""
    from ..files import dump_json, write_atomically
    from ..report.charts import build_pareto, write_png
    from ..report.page import pareto_lines

    rows = worst(result.results, len(prompts))
    images = save_images(folder, result.images, rows, rate)
    files = {**data, "prompts": list(map(str, prompts)), "rows": rows, "images": images}
    write_atomically(folder / "comparison.json", dump_json(files))
    write_markdown(folder / "comparison.md", result.results, result.costs, result.steps, data["measure"])
    for share, schedule in result.schedules.items():
        schedule.save(folder / f"{name}-{result.steps}-{share:g}.json")
    write_png(build_pareto(pareto_lines(data["lines"], "psnr")), folder / "pareto.png")
    draw_sheets(folder, result, prompts)


def worst(results: Sequence[MethodResult], prompts: int) -> list[int]:
    """Returns the numbers of a few prompts, those first that our fastest schedule does worst on."""
    own = [one for one in results if one.method == OURS and one.each]
    if not own:
        return list(range(min(ROWS, prompts)))
    each = min(own, key=lambda one: one.budget).each
    return sorted(range(prompts), key=lambda number: each[number])[:ROWS]


def save_images(
    folder: Path, images: Mapping[str, Any], rows: Sequence[int], rate: int | None
) -> dict[str, list[str]]:
    """Writes pictures of what was made of some prompts; returns their names by method and budget.

    Sounds are written beside their spectrograms, so that a report can play them.
    """
    from ..report.picture import save_output, strip

    names: dict[str, list[str]] = {}
    for number, (label, made) in enumerate(images.items()):
        names[label] = [f"images/{number:02d}-{row}.png" for row in rows]
        for name, row in zip(names[label], rows, strict=True):
            save_output(strip(made[row]), folder / name)
            if made[row].ndim == 2:
                save_output(made[row], (folder / name).with_suffix(".wav"), rate)
    return names


def draw_sheets(folder: Path, result: Comparison, prompts: Sequence[Prompt]) -> None:
    """Draws a contact sheet for each budget: other methods, the full run, ours."""
    from ..report.picture import side_by_side

    for share in dict.fromkeys(one.budget for one in result.results if one.budget < 1):
        labels = {name: f"{name} {share:g}" for name in dict.fromkeys(one.method for one in result.results)}
        columns = {name: result.images[label] for name, label in labels.items() if label in result.images}
        ours = columns.pop(OURS, None)
        columns |= {"full run": result.images["full run"]} | ({OURS: ours} if ours else {})
        if len(columns) > 1:
            shown = {name: column[:ROWS] for name, column in columns.items()}
            side_by_side(list(map(str, prompts[:ROWS])), shown, folder / f"sheet-{share:g}.png")
