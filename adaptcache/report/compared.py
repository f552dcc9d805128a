"""The part of a report that a comparison gives: table, Pareto plot, errors by prompt, images."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import ScheduleError
from .curves import uri

__all__ = ["comparison_of", "pareto"]

OURS, FULL = "adaptcache", "full run"
SIDE = 320  # pixels: larger images are shown smaller, or the page would grow to gigabytes
LONGEST = 1_000_000  # bytes of a sound, for the same reason
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 360, 44, 150, 12, 40
TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500)


def comparison_of(folder: Path, calls: int) -> dict[str, Any]:
    """Returns the numbers of a comparison, with its images as text.

    Arguments:
        folder: What `adaptcache compare --out` wrote.
        calls: Those of the schedule that the report is about: errors by prompt are those of the line nearest.
    """
    try:
        data: dict[str, Any] = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
        images = {label: list(files) for label, files in data.get("images", {}).items()}
        lines, prompts = list(data["lines"]), list(data["prompts"])
        numbers = data.get("rows", list(range(len(prompts))))
        parts = {
            "lines": lines, "costs": list(data.get("costs", [])), "plot": pareto(lines, "psnr"),
            "exact": pareto(lines, "exact"), "prompts": by_prompt(lines, prompts, calls),
            "rows": rows_of(folder, images, [prompts[k] for k in numbers], lines),
        }  # fmt: skip
        about = {name: data[name] for name in ("held_out", "swept")}
        about |= {name: data.get(name, "") for name in ("steps", "finer", "measure", "left_out")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        if isinstance(error, ScheduleError):
            raise
        raise ScheduleError(
            f"{folder} is no comparison ({error}); `adaptcache compare --out {folder}` writes one"
        ) from None
    return {**parts, **about}


def pareto(lines: Sequence[dict[str, Any]], measure: str) -> dict[str, Any] | None:
    """Returns the lines of a plot of decibels over denoiser calls, one a method, for an SVG."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        if line.get(measure) and line.get("calls") and line["method"] != FULL:
            found.setdefault(line["method"], []).append((line["calls"], line[measure]["mean"]))
    if not found:
        return None
    calls, decibels = ([point[k] for points in found.values() for point in points] for k in (0, 1))
    low, high = 5 * math.floor(min(decibels) / 5), 5 * math.ceil(max(decibels) / 5)
    least, most = min(calls) * 0.95, max(calls) * 1.05
    high += 5 * (low == high)

    def across(value: float) -> float:
        share: float = math.log(value / least) / math.log(most / least)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def down(value: float) -> float:
        return round(TOP + (high - value) * (HEIGHT - TOP - BOTTOM) / (high - low), 1)

    methods: list[dict[str, Any]] = []
    for name, points in found.items():
        dots = [
            {"x": across(x), "y": down(y), "text": f"{name}: {y:.1f} dB, {x:.1f} calls"}
            for x, y in sorted(points)
        ]
        methods.append({"name": name, "ours": name == OURS, "points": dots, "hue": 0})
    methods.sort(key=lambda method: (not method["ours"], method["points"][-1]["y"]))
    for number, method in enumerate(methods):
        method |= {"hue": number * 137 % 360, "label": TOP + 10 + 14 * number}
    return {
        "width": WIDTH, "height": max(HEIGHT, TOP + 14 * len(methods) + BOTTOM), "left": LEFT,
        "right": WIDTH - RIGHT, "bottom": HEIGHT - BOTTOM, "methods": methods[::-1],
        "decibels": [{"y": down(d), "label": d} for d in range(low, high + 1, 5 if high - low < 60 else 10)],
        "calls": [{"x": across(t), "label": t} for t in TICKS if least <= t <= most],
    }  # fmt: skip


def by_prompt(lines: Sequence[dict[str, Any]], prompts: Sequence[str], calls: int) -> dict[str, Any] | None:
    """Returns the decibels of each prompt by our schedule, the worst first."""
    own = [line for line in lines if line["method"] == OURS and line.get("each")]
    if not own:
        return None
    line = min(own, key=lambda line: abs(line["calls"] - calls))
    pairs = sorted(zip(line["each"], map(str, prompts), strict=True))
    low = math.floor(pairs[0][0] / 10) * 10 - 10
    span = max(1.0, pairs[-1][0] - low)
    bars = [
        {"prompt": prompt, "psnr": f"{value:.1f}", "share": f"{100 * (value - low) / span:.1f}"}
        for value, prompt in pairs
    ]
    return {"bars": bars, "calls": f"{line['calls']:.0f}", "low": low}


def rows_of(
    folder: Path, images: dict[str, list[str]], prompts: Sequence[str], lines: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Returns, for each prompt with images, the full run's, and ours and the best of the others by budget."""
    truth = images.pop(FULL, [])
    ours, others = [], []
    for budget in dict.fromkeys(line["budget"] for line in lines if line["method"] != FULL):
        here = [line for line in lines if line["budget"] == budget and line.get("psnr")]
        here.sort(key=lambda line: -line["psnr"]["mean"])
        labels = [f"{line['method']} {budget:g}" for line in here]
        ours += [label for label in labels if label in images and label.startswith(f"{OURS} ")]
        others += [label for label in labels if label in images and not label.startswith(f"{OURS} ")][:2]
    rows = []
    for number, (prompt, full) in enumerate(zip(prompts, truth, strict=False)):
        shown = [
            [(label, picture(folder, images[label][number]), sound(folder, images[label][number]))
             for label in labels] for labels in (ours, others)
        ]  # fmt: skip
        whole = {"full": picture(folder, full), "sound": sound(folder, full)}
        rows.append({"prompt": prompt, **whole, "ours": shown[0], "others": shown[1]})
    return rows


def inside(folder: Path, name: str) -> Path:
    """Returns the path of a file of the folder."""
    path = (folder / name).resolve()
    if folder.resolve() not in path.parents:  # the JSON may be a stranger's
        raise ScheduleError(f"{name} lies outside of {folder}")
    return path


def picture(folder: Path, name: str) -> str:
    """Returns an image of the folder as text."""
    with Image.open(inside(folder, name)) as image:
        shown = image.convert("RGB")
        shown.thumbnail((SIDE, SIDE))
        return uri(shown)


def sound(folder: Path, name: str) -> str:
    """Returns the sound whose spectrogram an image is, as text; nothing where there is none or a long one."""
    path = inside(folder, name).with_suffix(".wav")
    if not path.is_file() or path.stat().st_size > LONGEST:
        return ""
    return "data:audio/wav;base64," + base64.b64encode(path.read_bytes()).decode()
