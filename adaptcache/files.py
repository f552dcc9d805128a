"""Files written whole or not at all, and JSON whose numbers a person can read."""

import errno
import io
import json
import os
import re
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

FRAMES = 8  # a second, of animations


def locate(path: str | os.PathLike[str]) -> Path:
    """Returns a path, with the home folder where it begins with `~`.

    Raises:
        FileNotFoundError: There is no such home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        why = "its home folder is not known: set HOME, or give the whole path"
        raise FileNotFoundError(errno.ENOENT, why, os.fspath(path)) from None


def write_atomically(path: str | os.PathLike[str], content: bytes) -> Path:
    """Writes a file by way of a temporary neighbour, so that no reader and no crash sees half of it.

    A link stays one: the file that it leads to is written.

    Raises:
        OSError: It cannot be written; the message names it.
    """
    target = Path(os.path.realpath(path := locate(path)))
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")  # short, however long the name is
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # else a power cut can leave the new name with nothing in it
        temporary.replace(target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):  # of a full disk: it names no file
            raise type(error)(f"cannot write {path}: {error.strerror or error}") from None
        raise
    return path


def dump_json(data: Any) -> bytes:
    """Returns indented JSON with 8 significant digits and lists of plain values on one line."""
    text = json.dumps(_rounded(data), indent=1, ensure_ascii=False, allow_nan=False)
    text = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda found: "[" + re.sub(r",\s+", ", ", found[1]) + "]", text)
    return (text + "\n").encode()


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.8g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value


def write_image(path: str | Path, image: Any) -> Path:
    """Writes a PIL image, or a list of them as an animation, in the format of the file's ending."""
    from PIL import Image

    buffer = io.BytesIO()
    ending = check_image(path).suffix.lower()
    first, *rest = image if isinstance(image, list) else [image]
    animation = {"save_all": True, "append_images": rest, "duration": 1000 // FRAMES, "loop": 0} if rest else {}
    first.save(buffer, Image.registered_extensions()[ending], **animation)
    return write_atomically(path, buffer.getvalue())


def wave_bytes(samples: Any, rate: int) -> bytes:
    """Returns sound with values in [-1, 1] and shape (channels, samples) as a WAV file of 16 bits."""
    from scipy.io import wavfile

    buffer = io.BytesIO()
    wavfile.write(buffer, rate, (samples.T.clip(-1, 1) * 32767).round().astype("<i2"))
    return buffer.getvalue()


def write_sound(path: str | Path, samples: Any, rate: int) -> Path:
    """Writes sound as `wave_bytes` gives it."""
    return write_atomically(path, wave_bytes(samples, rate))


def check_image(path: str | Path) -> Path:
    """Raises at once if no image can be written to a path."""
    from PIL import Image

    try:  # some formats are only read, or wait for a plugin, or have no colours
        Image.new("RGB", (1, 1)).save(io.BytesIO(), Image.registered_extensions()[Path(path).suffix.lower()])
    except (KeyError, OSError, ValueError):
        raise ValueError(f"cannot write an image as {Path(path).name!r}; use an ending such as .png or .jpg") from None
    return check_writable(path)


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Raises at once what writing to a path would raise after the work; leaves nothing behind."""
    if "://" in os.fspath(path):
        raise ValueError(f"cannot write {path}: give a path, not a URL")
    path = locate(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it")
    if path.exists() and not path.is_file():
        raise OSError(f"cannot write {path}: it is no regular file, and would be replaced by one")
    parent = next(folder for folder in Path(os.path.realpath(path)).parents if folder.exists())
    if not parent.is_dir():
        raise NotADirectoryError(f"cannot write {path}: {parent} is not a folder")
    try:
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:  # no permission, a file system that is read only or full, /proc
        raise type(error)(f"cannot write {path}: {error.strerror} in {parent}") from None
    return path
