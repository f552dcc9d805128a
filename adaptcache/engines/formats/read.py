"""Reads the files of other engines: JSON, YAML, flags and lines of Python, as plain data."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from ...errors import ScheduleError

__all__ = ["read"]

LARGEST = 2**20  # bytes; real ones have about a thousand


def read(path: str | Path) -> Any:
    """Returns what a file says: mappings, lists, numbers. Never runs anything in it.

    Raises:
        ScheduleError: The file cannot be read, or is none of these.
    """
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST:
            raise ScheduleError(f"{path} is larger than 1 MB: these are no cache settings")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ScheduleError(f"{path} is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ScheduleError(f"cannot read {path}: {error.strerror}") from None
    if flags := re.search(r"--scm-mask[ =]\"?([01](?:,[01])*)\"?", text):
        return {"scm-mask": [int(step) for step in flags[1].split(",")]}
    if table := re.match(r"\s*\"[\w.-]+\": *(np\.array\()?(\[[^\]]*\])", text):
        return {"mag_table" if table[1] else "tea_table": json.loads(table[2])}
    try:
        data = yaml.safe_load(text)  # JSON is YAML
    except (yaml.YAMLError, RecursionError) as error:
        raise ScheduleError(f"{path} is neither JSON nor YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(data, (dict, list)):
        raise ScheduleError(f"{path} holds no cache settings: it is a {type(data).__name__}")
    return data
