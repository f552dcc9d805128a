"""The model card of a folder of schedules: what they are for, how good they are, how they are used."""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCardData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EXACT = 100.0  # decibels that identical images are given
BEGIN, END = "<!-- adaptcache: what follows is generated -->", "<!-- adaptcache: end -->"

BODY = """\
# {title}

Schedules for adaptcache: at which steps a diffusers pipeline calls its denoiser, and what it uses instead at
the others. They hold no weights of the model; it is loaded from where it always was.

{table}
{plot}
Measured on prompts that were not used for fitting, against the full run with the same noise. Evidence holds
for the checkpoint, steps, size and guidance below, and for prompts like those measured; nothing else is
promised.

```python
import adaptcache

schedule = adaptcache.Schedule.from_pretrained("{repo}"{name})
with adaptcache.attach(pipe, schedule) as handle:
    image = pipe("a lighthouse in a storm", num_inference_steps={steps}).images[0]
print(handle.report())
```

{details}
"""


def build_card(schedules: Mapping[str, Any], repo: str, before: str = "", plot: str | None = None) -> str:
    """Returns the card.

    Arguments:
        schedules: The schedules of the folder by name; "" is the one without.
        before: The card there is. What people wrote around the generated part stays; a card without one
            is returned as it is.
        plot: The file of the plot beside it, if there is one.
    """
    body = f"{BEGIN}\n{_body(schedules, repo, plot)}{END}"
    if not before.strip():
        return f"---\n{_data(schedules)}\n---\n{body}\n"
    if BEGIN not in before or END not in before:
        return before
    head, rest = before.split(BEGIN, 1)
    return f"{head}{body}{rest.split(END, 1)[1]}"


def format_psnr(decibels: float) -> str:
    """Returns decibels as people read them; identical images are "exact"."""
    return "exact" if decibels >= EXACT else f"{decibels:.1f} dB"


def _data(schedules: Mapping[str, Any]) -> str:
    checkpoints = {schedule.denoiser.checkpoint for schedule in schedules.values()}
    bases = sorted(base for base in checkpoints if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", base))
    classes = sorted({schedule.denoiser.class_name for schedule in schedules.values()} - {""})
    return ModelCardData(
        base_model=bases or None,
        base_model_relation="adapter" if bases else None,
        library_name="adaptcache",
        tags=["adaptcache", "diffusers", "caching", *classes],
    ).to_yaml()


def _body(schedules: Mapping[str, Any], repo: str, plot: str | None) -> str:
    heads = ("name", "steps", "calls", "PSNR, mean", "5th percentile", "as few plain steps", "prompts")
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    rows += [_row(name, schedule) for name, schedule in sorted(schedules.items())]
    first = min(schedules)
    shows = "Quality over the share of calls, and the computed steps of each schedule"
    return BODY.format(
        title=_cell(schedules[first].name),
        table="\n".join(rows),
        plot=f"\n![{shows}]({plot})\n" if plot else "",
        repo=repo,
        name=f', name="{first}"' if first else "",
        steps=schedules[first].grid.steps,
        details="\n".join(_details(name, schedule) for name, schedule in sorted(schedules.items())),
    )


def _row(name: str, schedule: Any) -> str:
    seen = schedule.evidence
    cells = [f"`{name}`" if name else "(default)", str(schedule.grid.steps)]
    if seen is None:
        cells += ["", str(schedule.made.get("evidence") or "not measured"), "", "", ""]
    else:
        quality = (format_psnr(seen.psnr[key]) for key in ("mean", "p05"))
        plain = seen.baseline.psnr if seen.baseline else {}
        few = f"{format_psnr(plain['mean'])} ({format_psnr(plain['p05'])})" if plain else ""
        cells += [str(seen.calls[0]), *quality, few, _cell(seen.prompts)]
    return f"| {' | '.join(cells)} |"


def _details(name: str, schedule: Any) -> str:
    made, fitted = schedule.made, schedule.denoiser
    facts = {
        "schedule": schedule.name,
        "checkpoint": fitted.checkpoint or "unknown",
        "denoiser": fitted.class_name,
        "pipeline": made.get("pipeline"),
        "scheduler": schedule.grid.scheduler,
        "call": ", ".join(f"{key}={value}" for key, value in dict(made.get("call") or {}).items()),
        "dtype": made.get("dtype"),
        "other steps": "planned anew from its kernel" if schedule.kernel else "refused",
        "made with": f"adaptcache {made['adaptcache']}" if "adaptcache" in made else None,
    }
    lines = [f"- {key}: {_cell(str(value))}" for key, value in facts.items() if value]
    return "\n".join([f"## {name or 'Default'}", "", *lines, ""])


def _cell(text: str) -> str:
    """Returns one line without what would end a table's cell: names come from strangers."""
    return " ".join(text.split()).replace("|", "/")[:200]


def plot_png(schedules: Mapping[str, Any]) -> bytes | None:
    """Returns the plot of a card as a PNG; None without matplotlib (`adaptcache-diffusers[report]`)."""
    if importlib.util.find_spec("matplotlib") is None:
        return None
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"text.parse_math": False}):  # names come from strangers
        build_plot(schedules).savefig(buffer, format="png")
    return buffer.getvalue()


def build_plot(schedules: Mapping[str, Any]) -> Figure:
    """Draws decibels over the share of calls, mean and 5th percentile, and the steps of each schedule by its name."""
    from matplotlib.figure import Figure

    measured = {name: s.evidence for name, s in sorted(schedules.items()) if s.evidence}
    heights = [2.6] * bool(measured) + [0.26 * len(schedules) + 0.3]
    figure = Figure(figsize=(9, sum(heights)), dpi=100, layout="constrained")
    *upper, strips = figure.subplots(len(heights), height_ratios=heights, squeeze=False)[:, 0]
    for axes in upper:
        for name, seen in measured.items():
            share, mean, low = seen.calls[0] / max(1, seen.calls[1]), seen.psnr["mean"], seen.psnr["p05"]
            axes.errorbar([share], [mean], [[max(0, mean - low)], [0]], fmt="o", capsize=4, color="C0")
            axes.annotate(name or "default", (share, mean), xytext=(9, 0), textcoords="offset points", va="center")
        axes.set(xlim=(0, 1), ylabel="PSNR, dB", xlabel="share of the denoiser calls made")
        axes.set_title("PSNR against the full run: mean, and 5th percentile below it", fontsize=10)
        axes.margins(y=0.2)
        axes.grid(alpha=0.3)
    _strips(strips, schedules)
    return figure


def _strips(axes: Axes, schedules: Mapping[str, Any]) -> None:
    for row, (_, schedule) in enumerate(sorted(schedules.items())):
        policy, times = schedule.rules[0].policy, schedule.grid.times
        if not times or not hasattr(policy, "steps"):
            axes.text(0, row, f"decides as it runs ({policy.type})", va="center")
            continue
        steps, count = policy.steps(times), len(times)
        colours = ["C0" if i in steps else "white" for i in range(count)]
        axes.barh(
            [row] * count, 0.85 / count, 0.7, [i / count for i in range(count)], color=colours,
            edgecolor=["C0" if i in steps else "lightgray" for i in range(count)],
        )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(len(schedules) - 0.5, -0.5), xticks=[])
    axes.set_yticks(range(len(schedules)), [(name or "default")[:24] for name in sorted(schedules)])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
