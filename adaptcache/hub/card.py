"""The model card of a folder of schedules: what they are for, how good they are, how they are used."""

from __future__ import annotations

import re
from collections.abc import Mapping

from huggingface_hub import ModelCardData

from ..schedule.schedule import Schedule

__all__ = ["card"]

BEGIN, END = "<!-- adaptcache: what follows is generated -->", "<!-- adaptcache: end -->"

BODY = """\
# {title}

Schedules for adaptcache: at which steps a diffusers pipeline calls its denoiser, and what it uses instead at
the others. They hold no weights of the model; it is loaded from where it always was.

{table}

![Quality over the share of calls, and the computed steps of each schedule](plot.png)

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


def card(schedules: Mapping[str, Schedule], repo: str, before: str = "") -> str:
    """Returns the card.

    Arguments:
        schedules: The schedules of the folder by name; "" is the one without.
        repo: Where they are loaded from.
        before: The card there is. What people wrote around the generated part stays; a card without one
            is returned as it is.
    """
    body = f"{BEGIN}\n{_body(schedules, repo)}{END}"
    if not before.strip():
        return f"---\n{_data(schedules)}\n---\n{body}\n"
    if BEGIN not in before or END not in before:
        return before
    head, rest = before.split(BEGIN, 1)
    return f"{head}{body}{rest.split(END, 1)[1]}"


def _data(schedules: Mapping[str, Schedule]) -> str:
    checkpoints = {schedule.denoiser.checkpoint for schedule in schedules.values()}
    bases = sorted(base for base in checkpoints if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", base))
    classes = sorted({schedule.denoiser.class_name for schedule in schedules.values()})
    return ModelCardData(
        base_model=bases or None,
        base_model_relation="adapter" if bases else None,
        library_name="adaptcache",
        tags=["adaptcache", "diffusers", "caching", *classes],
    ).to_yaml()


def _body(schedules: Mapping[str, Schedule], repo: str) -> str:
    rows = ["| name | steps | calls | PSNR, mean | 5th percentile | prompts |", "|---|---|---|---|---|---|"]
    rows += [_row(name, schedule) for name, schedule in sorted(schedules.items())]
    first = min(schedules)
    return BODY.format(
        title=_cell(schedules[first].name),
        table="\n".join(rows),
        repo=repo,
        name=f', name="{first}"' if first else "",
        steps=len(schedules[first].grid.times),
        details="\n".join(_details(name, schedule) for name, schedule in sorted(schedules.items())),
    )


def _row(name: str, schedule: Schedule) -> str:
    steps, seen = len(schedule.grid.times), schedule.evidence
    cells = ["(default)" if not name else f"`{name}`", str(steps)]
    if seen is None:
        return "| " + " | ".join([*cells, "", "not measured", "", ""]) + " |"
    quality = (f"{seen.psnr[key]:.1f} dB" if key in seen.psnr else "" for key in ("mean", "p05"))
    return "| " + " | ".join([*cells, str(seen.calls[0]), *quality, _cell(seen.prompts)]) + " |"


def _details(name: str, schedule: Schedule) -> str:
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
