"""`adaptcache compare`"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ..call import Call
from ..compare import OURS, Line, methods_of
from ..compare import compare as run_comparison
from ..files import check_writable, dump_json, write_atomically
from ..presets import resolve
from ..presets.prompts import read_prompts
from ..profiling.store import Store
from ..report.picture import save_output, side_by_side, strip
from .calibrate import Model
from .screen import out, print_json, progress

__all__ = ["compare"]

ROWS = 6  # of contact sheets
DRAWN = (3, 4)  # dimensions of an image and of a clip; sound has fewer


def compare(
    model: Model = "emoji-flux",
    budgets: Annotated[str, typer.Option(help="Fractions of the denoiser calls.")] = "0.5,0.36,0.25,0.18",
    methods: Annotated[str, typer.Option(help="Names, separated by commas. [default: all]")] = "",
    steps: Annotated[int | None, typer.Option(help="Scheduler steps. [default: the preset's]")] = None,
    prompts: Annotated[str | None, typer.Option(help="A prompt file, or the name of one.")] = None,
    fit_on: Annotated[int, typer.Option(help="Calibration prompts at most.", min=1)] = 16,
    sweep_on: Annotated[int, typer.Option(help="Prompts to choose settings of others on.", min=1)] = 8,
    check_on: Annotated[int, typer.Option(help="Held-out prompts at most.", min=1)] = 32,
    batch_size: Annotated[int, typer.Option(help="Prompts in one run.", min=1)] = 1,
    device: Annotated[str | None, typer.Option(help="cuda, mps, cpu.")] = None,
    to: Annotated[Path | None, typer.Option("--out", "-o", help="A folder for pictures and JSON.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare with other methods, each at its best setting: same prompts, noise, grid and dtype.

    Examples:

      adaptcache compare                                    # the demo model, all methods

      adaptcache compare --model ./my-fine-tune --budgets 0.36 --methods adaptcache,MagCache --out new
    """
    shares = _shares(budgets)
    names = methods_of([name.strip() for name in methods.split(",") if name.strip()])
    preset = resolve(model)
    known = read_prompts(prompts or preset.prompts)
    held_out = known.held_out[:check_on]
    if to:
        check_writable(to / "comparison.json")
        if importlib.util.find_spec("matplotlib") is None:  # said now, not after an hour
            raise ImportError("--out draws a plot: pip install 'adaptcache-diffusers[report]'")
    pipe = preset.load_pipeline(device)
    with progress() as report:
        result = run_comparison(
            pipe, Call(preset.steps if steps is None else steps, preset.call), known.calibration[:fit_on],
            held_out, shares, methods=names, sweep_on=sweep_on, batch_size=batch_size,
            fit_batch=preset.batch_size, store=Store(), progress=report,
        )  # fmt: skip
    data = {"model": preset.name, **result.data()}
    if to:
        shown = _save(to, result.images)
        files = {**data, "prompts": list(held_out), "images": shown}
        write_atomically(to / "comparison.json", dump_json(files))
        for share, schedule in result.schedules.items():
            schedule.save(to / f"{preset.name}-{result.steps}-{share:g}.json")
        _draw(to, result.lines, result.images, list(held_out), shares)
    if json:
        print_json(data)
        return
    out.print(
        f"\n{result.held_out} held-out prompts, {result.steps} steps, against the full run; "
        f"settings of other methods chosen on {result.swept} calibration prompts:\n"
    )
    out.print(_table(result.lines))
    if to:
        out.print(f"\nwrote {to}")


def _shares(text: str) -> list[float]:
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"budgets are numbers separated by commas, say 0.5,0.25; got {text!r}") from None
    if bad := [share for share in shares if not 0 < share < 1]:
        raise ValueError(f"a budget is a fraction of the calls, between 0 and 1; got {bad[0]:g}")
    return sorted(set(shares), reverse=True)


def _table(lines: list[Line]) -> Table:
    view = Table(box=None, header_style="bold")
    for heading in ("budget", "method", "PSNR dB", "5th pct", "SSIM", "latent error", "calls", "block calls",
                    "loop"):  # fmt: skip
        view.add_column(heading, justify="left" if heading == "method" else "right", no_wrap=True)
    for line in lines:
        name = f"[bold]{line.method}[/]" if line.method == OURS else line.method
        if line.note or line.psnr is None:
            view.add_row(f"{line.budget:g}", f"{name}  [dim]{line.note}[/]")
            continue
        exact = line.psnr["mean"] >= 100
        view.add_row(
            f"{line.budget:g}", name, "exact" if exact else f"{line.psnr['mean']:.1f}",
            "" if exact else f"{line.psnr['p05']:.1f}", f"{line.ssim['mean']:.4f}" if line.ssim else "-",
            f"{line.latent:.4f}", f"{line.calls:.1f}", f"{line.blocks:.0f}", f"{line.speed:.2f}x",
        )  # fmt: skip
    return view


def _save(folder: Path, images: dict[str, Any]) -> dict[str, list[str]]:
    """Writes the images of the first prompts, clips as strips; returns their names by method and budget."""
    names: dict[str, list[str]] = {}
    if images["full run"][0].ndim in DRAWN:
        for number, (label, made) in enumerate(images.items()):
            names[label] = [f"images/{number:02d}-{k}.png" for k in range(min(ROWS, len(made)))]
            for name, image in zip(names[label], made, strict=False):
                save_output(strip(image), folder / name)
    return names


def _draw(
    folder: Path, lines: list[Line], images: dict[str, Any], prompts: list[Any], shares: list[float]
) -> None:
    from ..compare.pareto import draw

    draw(lines, folder / "pareto.png")
    full = images["full run"]
    if full[0].ndim not in DRAWN:
        return
    for share in shares:
        made = {name: images[f"{name} {share:g}"] for name in {line.method: 0 for line in lines}
                if f"{name} {share:g}" in images}  # fmt: skip
        ours = made.pop(OURS, None)
        columns = {**made, "full run": full} | ({OURS: ours} if ours else {})
        if len(columns) > 1:
            shown = {name: column[:ROWS] for name, column in columns.items()}
            side_by_side(list(map(str, prompts[:ROWS])), shown, folder / f"sheet-{share:g}.png")
