"""What a comparison leaves in a folder: numbers, tables, schedules, plots and images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..comparison import Comparison
from ..comparison.compare import OURS
from ..comparison.line import Line
from ..files import dump_json, write_atomically
from ..report.picture import save_output, side_by_side, strip
from ..runs import Prompt
from .table import write_markdown

__all__ = ["write_folder"]

ROWS = 6  # prompts whose images are kept


def write_folder(
    folder: Path, result: Comparison, data: dict[str, Any], prompts: Sequence[Prompt], name: str,
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
    rows = worst(result.lines, len(prompts))
    images = save_images(folder, result.images, rows, rate)
    files = {**data, "prompts": list(map(str, prompts)), "rows": rows, "images": images}
    write_atomically(folder / "comparison.json", dump_json(files))
    write_markdown(folder / "comparison.md", result.lines, result.costs, result.steps, data["measure"])
    for share, schedule in result.schedules.items():
        schedule.save(folder / f"{name}-{result.steps}-{share:g}.json")
    draw(folder, result.lines, result.images, prompts)


def worst(lines: list[Line], prompts: int) -> list[int]:
    """Returns the numbers of a few prompts, those first that our fastest schedule does worst on."""
    own = [line for line in lines if line.method == OURS and line.each]
    if not own:
        return list(range(min(ROWS, prompts)))
    each = min(own, key=lambda line: line.budget).each
    return sorted(range(prompts), key=lambda number: each[number])[:ROWS]


def save_images(
    folder: Path, images: dict[str, Any], rows: list[int], rate: int | None
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


def draw(folder: Path, lines: list[Line], images: dict[str, Any], prompts: Sequence[Prompt]) -> None:
    """Draws the Pareto plot, and a contact sheet for each budget."""
    from ..comparison.pareto import draw as draw_pareto

    draw_pareto(lines, folder / "pareto.png")
    full = images["full run"]
    for share in {line.budget: 0 for line in lines if line.budget < 1}:
        made = {name: images[f"{name} {share:g}"] for name in {line.method: 0 for line in lines}
                if f"{name} {share:g}" in images}  # fmt: skip
        ours = made.pop(OURS, None)
        columns = {**made, "full run": full} | ({OURS: ours} if ours else {})
        if len(columns) > 1:
            shown = {name: column[:ROWS] for name, column in columns.items()}
            side_by_side(list(map(str, prompts[:ROWS])), shown, folder / f"sheet-{share:g}.png")
