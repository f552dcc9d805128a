"""One HTML file about a schedule, or several: what it does, how good it is, where it came from.

Needs `adaptcache-diffusers[report]`.
"""

import base64
import importlib.resources
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image
from pydantic import BaseModel, FiniteFloat, ValidationError, model_validator
from rich.filesize import decimal

from ..errors import ScheduleError
from ..evaluation.evaluate import Row
from ..evaluation.generate import Generation
from ..evaluation.metrics import psnr
from ..files import FRAMES, locate, wave_bytes, write_atomically
from ..hub.card import EXACT, format_psnr
from ..limits import first_fault, read_bytes
from ..policies.plan import Plan
from ..schedule import Kernel, Schedule
from ..schedule.format import Count, Summary
from .charts import LEAST, Points, build_curve, build_heat_map, build_pareto, check_charts, to_svg
from .picture import spectrogram, to_pixels

OURS, FULL = "adaptcache", "full run"
SIDE = 320  # pixels: larger images are shown smaller, or the page would grow to gigabytes
LONGEST = 1_000_000  # bytes of a sound, for the same reason
LARGEST = 2**25  # bytes of a comparison's numbers


@dataclass(frozen=True)
class Measured:
    """What full run, schedules and as many plain steps made of some prompts, beside the numbers of all prompts."""

    prompts: tuple[str, ...]  # the captions of what is shown
    # the full run, then each schedule and as many plain steps in turn, as `evaluate` returns them
    rows: tuple[Row, ...]
    images: tuple[tuple[np.ndarray, ...], ...]  # what was made for these prompts, a list a row
    held_out: int  # how many prompts the numbers are of
    rate: int | None = None  # samples a second, of sound

    @classmethod
    def of(
        cls, prompts: Sequence[object], rows: Sequence[Row], made: Sequence[Generation], *, most: int = 6,
        worst_of: int = 0, rate: int | None = None,
    ) -> Self:  # fmt: skip
        """Keeps the outputs of `most` prompts: those that schedule number `worst_of` does worst on, the worst first.

        `rows` and `made` are what `evaluate_schedules` returned; `rate` is in samples of a sound a second.
        """
        full, cached = made[0].images, made[1 + 2 * worst_of].images
        kept = sorted(range(len(full)), key=lambda number: psnr(cached[number], full[number]))[:most]
        images = tuple(tuple(one.images[number] for number in kept) for one in made)
        return cls(tuple(str(prompts[number]) for number in kept), tuple(rows), images, len(full), rate)

    def only(self, number: int) -> Self:
        """Returns what was measured of one of the schedules."""
        kept = (0, 1 + 2 * number, 2 + 2 * number)
        return replace(self, rows=tuple(self.rows[k] for k in kept), images=tuple(self.images[k] for k in kept))

    def columns(self) -> dict[str, Sequence[np.ndarray]]:
        """Returns the outputs by headings for a picture: full run, as many plain steps, the schedule, in turn."""
        shown: dict[str, Sequence[np.ndarray]] = {f"full run, {self.rows[0].calls} steps": self.images[0]}
        for number in range(1, len(self.rows), 2):
            shown |= {self.rows[number + 1].name: self.images[number + 1]}
            shown |= {f"adaptcache, {self.rows[number].calls} calls": self.images[number]}
        return shown


def write_report(
    schedules: Schedule | Sequence[Schedule], path: str | Path, comparison: str | Path | None = None,
    measured: Measured | None = None,
) -> Path:  # fmt: skip
    """Writes the report of a schedule, or of several on one page.

    Arguments:
        schedules: What it is about.
        path: The HTML file.
        comparison: A folder that `adaptcache compare --out` wrote, for its table, plots and images.
        measured: What the schedules made of some prompts, for the pictures.
    """
    return write_atomically(path, build_report(schedules, comparison, measured).encode())


def build_report(
    schedules: Schedule | Sequence[Schedule], comparison: str | Path | None = None, measured: Measured | None = None
) -> str:
    """Returns the report of schedules: one page that loads nothing from elsewhere."""
    check_charts()
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError:
        raise ImportError("reports need jinja2: pip install 'adaptcache-diffusers[report]'") from None

    many = [schedules] if isinstance(schedules, Schedule) else list(schedules)
    text = (importlib.resources.files(__package__) / "page.html.j2").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters |= {"psnr": format_psnr, "size": decimal, "chart": lambda *chart: Markup(to_svg(*chart))}
    parts = [_part(one, measured.only(number) if measured else None) for number, one in enumerate(many)]
    labels = [part["label"] for part in parts]
    if len(set(labels)) < len(labels):
        labels = [one.name for one in many]
    return page.from_string(text).render(
        title=" and ".join(one.name for one in many),
        parts=parts,
        measured=measured and _measured(measured, labels),
        comparison=read_comparison(locate(comparison), parts[0]["calls"]) if comparison else None,
        exact=EXACT,
    )


def _part(schedule: Schedule, measured: Measured | None) -> dict[str, Any]:
    """Returns what the page says about one of its schedules."""
    strips, seen = _strips(schedule), schedule.evidence
    computed = [cell["index"] for cell in strips[0] if cell["computed"]] if strips else []
    calls = seen.calls[0] if seen else len(computed)
    sentence, grade = verdict(schedule, measured)
    charts = dict.fromkeys(("errors", "changes", "heat"))  # of what the schedule knows of its model
    if kernel := schedule.kernel:
        changes = output_changes(kernel)
        charts["errors"] = build_curve(kernel.sensitivity, computed)
        charts["changes"] = build_curve(changes, computed, first=1) if len(changes) else None
        charts["heat"] = build_heat_map(output_distances(kernel))
    return {
        "schedule": schedule, "strips": strips, "calls": calls, "verdict": sentence, "grade": grade,
        "label": f"{calls} calls" if calls else schedule.name,
        "forecast": schedule.rules[0].forecast.model_dump(exclude={"table"}),
        "certificate": seen.certificate.sentence if seen and seen.certificate else None,
        **charts,
    }  # fmt: skip


def verdict(schedule: Schedule, measured: Measured | None = None) -> tuple[str, str]:
    """Returns what to think of a schedule in a sentence, and whether that is "good", "bad" or "" (not known).

    Its evidence is taken where nothing was measured of it and of as many plain steps.
    """
    seen = schedule.evidence
    plain: float | None
    if measured:
        _, ours, fewer = measured.rows
        calls, decibels, plain = ours.calls, ours.psnr["mean"], fewer.psnr["mean"]
        speed = f"{ours.loop:.2f} times as fast as all {measured.rows[0].calls} steps, as measured"
    elif seen is None:
        return "Not measured on held-out prompts: nothing is known of its quality.", ""
    elif seen.verdict:
        return seen.verdict, "bad"
    else:
        calls, decibels = seen.calls[0], seen.psnr["mean"]
        plain = seen.baseline.psnr["mean"] if seen.baseline else None
        speed = f"{seen.speed:.2f} times fewer denoiser calls than all {seen.calls[1]} steps"
    sentence = f"{speed}; outputs are {format_psnr(decibels)} from the full run's"
    if plain is None:
        return f"{sentence}. As many plain steps were not measured beside it.", ""
    gain = decibels - plain
    if gain < 0:
        return f"{sentence}, {-gain:.1f} dB worse than {calls} plain steps: take those instead.", "bad"
    return f"{sentence}, {gain:.1f} dB nearer than {calls} plain steps.", "good" if gain >= 1 else ""


def _measured(measured: Measured, labels: Sequence[str]) -> dict[str, Any]:
    """Returns the numbers and the pictures of a measurement."""
    names = ["full run"]
    for number, label in enumerate(labels):
        names += [f"adaptcache, {label}", measured.rows[2 + 2 * number].name]
    rows = []
    for number, (name, row) in enumerate(zip(names, measured.rows, strict=True)):
        beside = measured.rows[number + 1] if number % 2 else None  # as many plain steps
        gain = row.psnr["mean"] - beside.psnr["mean"] if beside else None
        rows.append({"name": name, "row": row, "gain": gain})
    prompts = []
    for number, prompt in enumerate(measured.prompts):
        made = [outputs[number] for outputs in measured.images]
        pairs = [
            (f"{names[k]}, {format_psnr(psnr(made[k], made[0]))}", embed_output(made[k]),
             embed_sound(made[k], measured.rate)) for k in range(1, len(made))
        ]  # fmt: skip
        whole = {"full": embed_output(made[0]), "sound": embed_sound(made[0], measured.rate)}
        prompts.append({"prompt": prompt, **whole, "pairs": pairs})
    return {"rows": rows, "prompts": prompts, "held_out": measured.held_out}


def embed_output(output: np.ndarray) -> str:
    """Returns an output as an image in text: a clip as one that plays, a sound as its spectrogram."""
    shown = spectrogram(output) if output.ndim == 2 else output
    pixels = to_pixels(shown).reshape(-1, *shown.shape[-3:])
    first, *rest = frames = [Image.fromarray(frame) for frame in pixels]
    for frame in frames:
        frame.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    clip = {"save_all": True, "append_images": rest, "duration": 1000 // FRAMES, "loop": 0, "lossless": True}
    first.save(buffer, "WEBP" if rest else "PNG", **(clip if rest else {}))
    return _as_uri("image/webp" if rest else "image/png", buffer.getvalue())


def embed_sound(output: np.ndarray, rate: int | None) -> str:
    """Returns a sound as text; nothing where it is none, or a long one."""
    if output.ndim != 2 or rate is None or output.size * 2 > LONGEST:
        return ""
    return _as_uri("audio/wav", wave_bytes(output, rate))


def _as_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _strips(schedule: Schedule) -> list[list[dict[str, Any]]]:
    """Returns, for each gear, the steps with their times and whether they are computed."""
    policy, times = schedule.rules[0].policy, schedule.grid.times
    chosen = [policy.steps(times, g) for g in range(len(policy.gears))] if isinstance(policy, Plan) else []
    return [[{"index": i, "t": f"{t:.3f}", "computed": i in steps} for i, t in enumerate(times)] for steps in chosen]


def output_changes(kernel: Kernel) -> np.ndarray:
    """Returns how far each output is from the one before, relative to that, with shape (N - 1,)."""
    gram = np.array(kernel.gram)
    size = np.diag(gram)
    apart = size[1:] - 2 * np.diag(gram, 1) + size[:-1]
    changes: np.ndarray = np.sqrt(np.clip(apart, 0, None) / np.clip(size[:-1], LEAST, None))
    return changes


def output_distances(kernel: Kernel) -> np.ndarray:
    """Returns one minus the cosine of the outputs of any two steps, with shape (N, N)."""
    gram = np.array(kernel.gram)
    size = np.sqrt(np.clip(np.diag(gram), 1e-30, None))
    distances: np.ndarray = 1 - gram / np.outer(size, size)
    return distances


# What a comparison gives: table, Pareto plots, errors by prompt, images.


class Line(BaseModel):
    """What a method reached at a budget, as far as a page shows it; with a `note` instead where it did not run."""

    budget: FiniteFloat
    method: str
    note: str = ""
    psnr: Summary | None = None
    exact: Summary | None = None
    calls: FiniteFloat | None = None
    speed: FiniteFloat | None = None
    memory: Count | None = None
    shown: FiniteFloat | None = None
    each: list[FiniteFloat] = []

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.psnr or self.each) and None in (self.calls, self.speed):
            raise ValueError("its calls and speed are missing")
        return self


class Table(BaseModel):
    """What a page shows of a comparison's file."""

    lines: list[Line]
    prompts: list[str]
    held_out: Count
    swept: Count
    finer: int | str = ""
    measure: str = ""
    rows: list[Count] | None = None
    images: dict[str, list[str]] = {}


def read_comparison(folder: Path, calls: int) -> dict[str, Any]:
    """Returns the numbers of a comparison, with its images as text.

    Arguments:
        folder: What `adaptcache compare --out` wrote.
        calls: Those of the schedule that the report is about: errors by prompt are those of the line nearest.

    Raises:
        ScheduleError: It is no such folder, or names files outside of it.
    """
    try:
        data = Table.model_validate_json(read_bytes(folder / "comparison.json", LARGEST)).model_dump()
        lines, prompts, rows = data["lines"], data["prompts"], data["rows"]
        numbers = range(len(prompts)) if rows is None else rows
        found = (pareto_lines(lines, measure) for measure in ("psnr", "exact"))
        plots = [build_pareto(points, OURS) if points else None for points in found]
        return data | {
            "plot": plots[0], "exact": plots[1],
            "prompts": _by_prompt(lines, prompts, calls),
            "rows": _image_rows(folder, data["images"], [prompts[k] for k in numbers], lines),
        }  # fmt: skip
    except (OSError, ValueError, KeyError, IndexError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, ScheduleError):
            raise
        why: Any = f"it has no {error.args[0]}" if isinstance(error, KeyError) else error
        why = first_fault(error, "all of it") if isinstance(error, ValidationError) else why
        raise ScheduleError(
            f"{folder} is no comparison ({why}); `adaptcache compare --out {folder}` writes one"
        ) from None


def pareto_lines(lines: Sequence[dict[str, Any]], measure: str) -> dict[str, Points]:
    """Returns calls and decibels by method, without the full run and without what has no numbers."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        if line.get(measure) and line.get("calls") and line["method"] != FULL:
            found.setdefault(line["method"], []).append((line["calls"], line[measure]["mean"]))
    return dict(found)


def _by_prompt(lines: Sequence[dict[str, Any]], prompts: Sequence[str], calls: int) -> dict[str, Any] | None:
    """Returns the decibels of each prompt by our schedule, the worst first."""
    own = [line for line in lines if line["method"] == OURS and line.get("each")]
    if not own:
        return None
    line = min(own, key=lambda line: abs(line["calls"] - calls))
    pairs = sorted(zip(line["each"], map(str, prompts), strict=True))
    low = math.floor(pairs[0][0] / 10) * 10 - 10
    span = max(1.0, pairs[-1][0] - low)
    bars = [
        {"prompt": prompt, "psnr": format_psnr(value), "share": f"{100 * (value - low) / span:.1f}"}
        for value, prompt in pairs
    ]
    return {"bars": bars, "calls": f"{line['calls']:.0f}", "low": low}


def _image_rows(
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
            [(label, _picture(folder, images[label][number]), _sound(folder, images[label][number]))
             for label in labels] for labels in (ours, others)
        ]  # fmt: skip
        whole = {"full": _picture(folder, full), "sound": _sound(folder, full)}
        rows.append({"prompt": prompt, **whole, "ours": shown[0], "others": shown[1]})
    return rows


def _inside(folder: Path, name: str) -> Path:
    path = (folder / name).resolve()
    if folder.resolve() not in path.parents:  # the JSON may be a stranger's
        raise ScheduleError(f"{name} lies outside of {folder}")
    return path


def _picture(folder: Path, name: str) -> str:
    """Returns an image of the folder as text."""
    buffer = io.BytesIO()
    with Image.open(_inside(folder, name)) as image:
        shown = image.convert("RGB")
    shown.thumbnail((SIDE, SIDE))
    shown.save(buffer, "PNG")
    return _as_uri("image/png", buffer.getvalue())


def _sound(folder: Path, name: str) -> str:
    """Returns the sound whose spectrogram an image is, as text; nothing where there is none or a long one."""
    path = _inside(folder, str(Path(name).with_suffix(".wav")))
    if not path.is_file() or path.stat().st_size > LONGEST:
        return ""
    return _as_uri("audio/wav", path.read_bytes())
