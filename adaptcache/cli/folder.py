"""What a comparison leaves in a folder: numbers, tables, schedules, plots and images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..comparison.compare import OURS, Comparison
from ..comparison.runner import MethodResult
from ..files import dump_json, write_atomically
from ..report.charts import draw_pareto
from ..report.picture import save_output, side_by_side, strip
from ..runs import Prompt
from .table import write_markdown

ROWS = 6  # prompts whose images are kept


def write_folder(
    folder: Path, result: Comparison, data: Mapping[str, Any], prompts: Sequence[Prompt], name: str,
    rate: int | None = None,
) -> None:  # fmt: skip
    """Writes a comparison.

    Arguments:
        folder: Where to.
        result: What was measured.
        data: The numbers, as they are printed.
        prompts: The held-out prompts.
        name: Of the model, for the schedules.
        rate: Samples a second, of sound.
    """
    rows = worst(result.results, len(prompts))
    images = save_images(folder, result.images, rows, rate)
    files = {**data, "prompts": list(map(str, prompts)), "rows": rows, "images": images}
    write_atomically(folder / "comparison.json", dump_json(files))
    write_markdown(folder / "comparison.md", result.results, result.costs, result.steps, data["measure"])
    for share, schedule in result.schedules.items():
        schedule.save(folder / f"{name}-{result.steps}-{share:g}.json")
    points: dict[str, list[tuple[float, float]]] = {}
    for one in result.results:
        if one.budget < 1 and one.calls is not None and one.psnr:
            points.setdefault(one.method, []).append((one.calls, one.psnr["mean"]))
    draw_pareto(points, folder / "pareto.png")
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
    for share in dict.fromkeys(one.budget for one in result.results if one.budget < 1):
        labels = {name: f"{name} {share:g}" for name in dict.fromkeys(one.method for one in result.results)}
        columns = {name: result.images[label] for name, label in labels.items() if label in result.images}
        ours = columns.pop(OURS, None)
        columns |= {"full run": result.images["full run"]} | ({OURS: ours} if ours else {})
        if len(columns) > 1:
            shown = {name: column[:ROWS] for name, column in columns.items()}
            side_by_side(list(map(str, prompts[:ROWS])), shown, folder / f"sheet-{share:g}.png")
