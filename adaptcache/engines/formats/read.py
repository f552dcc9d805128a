"""Reads the settings of other engines: JSON, YAML, flags and lines of Python, as schedules."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ...errors import ScheduleError
from ...limits import first_fault, parse_json, read_bytes
from ...schedule.format import Grid
from ...schedule.schedule import LARGEST, Schedule
from . import FORMATS, find_format
from .mask import Settings
from .published import load_router

LARGEST_YAML = 2**12  # bytes: it takes a hundred times as long as JSON


def read_schedule(path: str | Path, kind: str | None = None) -> Schedule:
    """Returns the schedule in a file: one of ours, or what the settings of another engine mean, on any grid.

    Arguments:
        kind: Whose settings they are, one of `FORMATS`; None looks at their keys.

    Raises:
        ScheduleError: It is neither.
    """
    data = parse_settings(path)
    if isinstance(data, Mapping) and "rules" in data:
        return Schedule.load(path)
    try:
        kind, settings = interpret(data, kind=kind)
        return Schedule(
            name=Path(path).stem,
            grid=Grid(times=settings.times),
            rules=(settings.rule, *settings.more),
            made={"imported": Path(path).name, "kind": kind},
        )
    except ValidationError as error:
        raise ScheduleError(f"{path}: {first_fault(error)}") from None
    except ScheduleError as error:
        raise ScheduleError(f"{path}: {error}") from None


def parse_settings(path: str | Path) -> Any:
    """Returns what a file says: mappings, lists, numbers. Never runs anything in it.

    Raises:
        ScheduleError: The file cannot be read, or is none of these.
    """
    if Path(path).suffix in (".pt", ".pth"):
        return load_router(path)
    try:
        content = read_bytes(path, LARGEST)
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ScheduleError(f"{path} is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ScheduleError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise ScheduleError(f"{path} is larger than 1 MB: these are no cache settings") from None
    if flags := re.search(r"--scm-mask[ =]\"?([01](?:,[01])*)\"?", text):
        return {"scm-mask": [int(step) for step in flags[1].split(",")]}
    try:
        if entry := re.match(r"\s*\"([\w.-]+)\": *(np\.array\()?((?:\s*(?:\+\s*)?\[[^\]]*\](?:\*\d)?)+)", text):
            lists = re.findall(r"\[([^\]]*)\](?:\*(\d))?", entry[3])  # of the kind [1.0]*2+[0.99, ...]
            values = [float(value) for row, times in lists for value in row.split(",") * int(times or 1)]
            return {"model": entry[1], "mag_table" if entry[2] else "tea_table": values}
        data = parse_text(content)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ScheduleError(f"{path} is neither JSON nor YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(data, (dict, list)):
        raise ScheduleError(f"{path} holds no cache settings: it is a {type(data).__name__}")
    return data


def parse_text(content: bytes) -> Any:
    """Returns what JSON or YAML says."""
    with suppress(JSONDecodeError):
        return parse_json(content)
    if len(content) > LARGEST_YAML:
        raise ValueError(f"it has more than {LARGEST_YAML:,} bytes and is no JSON")
    return yaml.load(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def interpret(data: Any, steps: int | None = None, kind: str | None = None) -> tuple[str, Settings]:
    """Returns whose settings these are, and what they mean.

    The kind is one of `FORMATS`; without one the keys are looked at. Some settings need the steps of a run.

    Raises:
        LookupError: There is no such kind.
        ScheduleError: They are of no known kind, or not complete.
    """
    if isinstance(data, Mapping) and isinstance(data.get("cache_config"), Mapping):
        data = data["cache_config"]
    kind = kind or guess_kind(data)
    form = find_format(kind)
    try:
        return kind, form.read(data, steps)
    except ScheduleError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        why = f"{type(error).__name__} {error}"
        if isinstance(error, ValidationError):
            why = first_fault(error)
        raise ScheduleError(f"these are no {kind} settings: {why}") from error


def guess_kind(data: Any) -> str:
    """Returns whose settings these seem to be, by their keys."""
    if isinstance(data, Mapping):
        known = {name: sum(key in data for key in form.keys) for name, form in FORMATS.items()}
        if any(known.values()):
            return max(known, key=known.__getitem__)
        if data and all(isinstance(row, list) and all(step in (0, 1) for step in row) for row in data.values()):
            return "smoothcache"
        raise ScheduleError(f"these settings are of no known kind: {', '.join(map(str, data))[:80]}")
    if isinstance(data, Sequence) and all(isinstance(value, int) for value in data):
        mask = set(data) <= {0, 1} and len(data) > len(set(data))
        return "mask" if mask else "budcache"
    raise ScheduleError("a list of numbers does not say how it is used: name it, say 'mag_ratios', or give kind=")
