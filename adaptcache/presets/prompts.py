"""Prompt files: what to calibrate on, and what to keep aside for judging the result."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import suggest
from ..files import locate

LARGEST = 1_000_000  # bytes
LINES, LONGEST = 20_000, 10_000  # lines, and characters in one
PARTS = ("calibration", "held-out")


@dataclass(frozen=True)
class Prompts:
    """Two sets of prompts that have none in common."""

    name: str  # the name of the file, without its suffix
    calibration: tuple[str, ...]  # the prompts that weights and plans are fitted on
    held_out: tuple[str, ...]  # the prompts that a schedule is judged by
    digest: str  # SHA-256 of both parts, in hex. Comments and blank lines do not change it.
    # The subject of each held-out prompt: lines that begin with "+ " vary the subject of the line before, and count as
    # one with it in a certificate. Empty where no line does.
    groups: tuple[str, ...] = ()


def calibration_folder() -> Path:
    """Finds the presets, prompts and demo weights: in the installed package or the checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "calibration", package.parent / "calibration"):
        if (folder / "models").is_dir():
            return folder
    raise FileNotFoundError(f"the presets are missing beside {package}; install adaptcache-diffusers again")


def read_prompts(name_or_path: str | Path) -> Prompts:
    """Reads a prompt file: UTF-8, one prompt a line, comments after `#`.

    A line that begins with "+ " is another prompt of the subject of the line before. The parts are headed
    `[calibration]` and `[held-out]`. Without these headings every third subject, from the second on, is held out.

    Arguments:
        name_or_path: The name of an embedded file ("general"), or a path. Names go first, so
            that a file in the working directory does not change what a preset means.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not text, too large, too short, or has a prompt twice; or if no file
            can have that name.
    """
    embedded = {path.stem: path for path in calibration_folder().glob("prompts/*.txt")}
    try:
        path = embedded.get(str(name_or_path)) or locate(name_or_path)
        exists = path.exists()
    except OSError as error:  # too long, or the home of an unknown user
        raise ValueError(f"{str(name_or_path)[:80]!r} cannot be a prompt file: {error}") from None
    if not exists:
        raise FileNotFoundError(
            f"no prompt file {name_or_path}; give the path of a text file with one prompt a line, or an embedded one: "
            f"{suggest(str(name_or_path), sorted(embedded))}"
        )
    parts = _split(_text(path), path)
    subjects = _subjects(parts["held-out"])
    parts = {part: [prompt.removeprefix("+ ") for prompt in prompts] for part, prompts in parts.items()}
    total = sum(map(len, parts.values()))
    if total < 2:
        raise ValueError(
            f"{path} has {total or 'no'} prompt{'s' * (total == 0)}; at least 2 are needed, "
            "one to calibrate on and one to check with"
        )
    for part, prompts in parts.items():
        if not prompts:
            raise ValueError(f"{path} has no prompts under [{part}]; add at least one")
    calibration, held_out = (tuple(parts[part]) for part in PARTS)
    digest = hashlib.sha256(json.dumps([calibration, held_out]).encode()).hexdigest()
    return Prompts(path.stem, calibration, held_out, digest, subjects)


def _subjects(lines: list[str]) -> tuple[str, ...]:
    """Returns the subject of each prompt: the first of the lines that vary it."""
    found = list[str]()
    for line in lines:
        found.append(found[-1] if line.startswith("+ ") else line)
    return tuple(found) if len(set(found)) < len(found) else ()


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)  # never more, as a device has no size to ask for
    except OSError as error:
        raise ValueError(f"{path} cannot be read as a prompt file: {error.strerror}") from error
    if len(data) > LARGEST:
        raise ValueError(f"{path} is larger than 1 MB; a few dozen prompts are enough")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8, one prompt a line"
        ) from error
    if "\0" in text:
        raise ValueError(f"{path} is not a text file; give one with one prompt a line")
    return text


def _split(text: str, path: Path) -> dict[str, list[str]]:
    part, parts = "", {part: list[str]() for part in ("", *PARTS)}
    first_line: dict[str, int] = {}
    lines = text.splitlines()
    if len(lines) > LINES or max(map(len, lines), default=0) > LONGEST:
        raise ValueError(
            f"{path} has more than {LINES:,} lines, or {LONGEST:,} characters in one; a few dozen prompts are enough"
        )
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        if heading := re.fullmatch(r"\[([\w -]*)\]", line):
            part = heading[1].strip().lower()
            if part not in PARTS:
                raise ValueError(
                    f"{path}, line {number}: unknown part {line[:80]}; a prompt file has [calibration] and [held-out]"
                )
            continue
        # Held-out prompts must be new, and a change of case or spacing does not make one new.
        same = first_line.setdefault(" ".join(line.removeprefix("+ ").split()).casefold(), number)
        if same != number:
            raise ValueError(f"{path}, line {number}: the prompt of line {same} again; remove one of the two")
        if line.startswith("+ ") and not parts[part]:
            raise ValueError(
                f"{path}, line {number}: {line[:80]!r} varies a prompt, and there is no line before it: remove the +"
            )
        parts[part].append(line)
    loose = parts.pop("")
    if not part:
        subject, apart = -1, {"calibration": list[str](), "held-out": list[str]()}
        for line in loose:
            subject += not line.startswith("+ ")
            apart["held-out" if subject % 3 == 1 else "calibration"].append(line)
        return apart
    if loose:
        raise ValueError(f"{path}: {loose[0][:80]!r} stands above the first heading; move it below one")
    return parts
