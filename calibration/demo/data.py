"""Emoji pictures with captions: Noto emoji on twelve named backgrounds."""

import io
import json
import re
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image
from tqdm import tqdm

HERE = Path(__file__).parent
DATA = HERE / ".data"
PACKAGE = "@iconify-json/noto"
VERSION = "1.2.9"
ARCHIVE = DATA / f"iconify-json-noto-{VERSION}.tgz"
SIZE = 32

# Soft colours: on saturated ones a yellow face or a red heart would vanish.
BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (24, 24, 27),
    "gray": (161, 161, 170),
    "red": (248, 113, 113),
    "orange": (253, 186, 116),
    "yellow": (254, 240, 138),
    "green": (134, 239, 172),
    "teal": (45, 160, 160),
    "blue": (96, 165, 250),
    "purple": (167, 139, 250),
    "pink": (249, 168, 212),
    "brown": (140, 100, 75),
}


def read_icons() -> dict[str, str]:
    """Fetch the pinned npm package once and read its icons.

    Returns:
        SVG bodies (for a 128 x 128 view box) by icon name.

    Raises:
        RuntimeError: If npm is missing or could not fetch the package.
    """
    if not ARCHIVE.exists():
        DATA.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["npm", "pack", f"{PACKAGE}@{VERSION}"], cwd=DATA, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise RuntimeError(
                f"{PACKAGE}@{VERSION} could not be fetched ({error}); install npm, or put {ARCHIVE.name} into {DATA}"
            ) from error
    with tarfile.open(ARCHIVE) as tar:
        icons = json.load(tar.extractfile("package/icons.json"))["icons"]
    return {name: icon["body"] for name, icon in icons.items() if not icon.get("hidden")}


def select_icons() -> dict[str, str]:
    """Keep one icon a motif: no country flags, skin tones or identical pictures.

    Returns:
        SVG bodies by caption name ("red heart"), in alphabetical order.
    """
    kept, seen = {}, set()
    for name, body in sorted(read_icons().items()):
        words = " ".join(name.split("-"))
        # Gradient ids differ between copies of the same drawing.
        drawing = re.sub(r"svgID\w+", "", body)
        if "skin tone" in words or words.startswith("flag for") or drawing in seen:
            continue
        seen.add(drawing)
        kept[words] = body
    return kept


def caption(name: str, background: str) -> str:
    """Write the caption the model is trained with."""
    return f"{name} noto style {background} background"


def _render(body: str, size: int) -> np.ndarray:
    """Render an icon, with shape (size, size, 4), straight alpha, in [0, 1]."""
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 128 128">{body}</svg>'
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    return np.asarray(picture, dtype=np.float32) / 255


def load_emoji(size: int = SIZE) -> tuple[list[str], np.ndarray]:
    """Load the emoji, rendering them on the first call.

    Args:
        size: Height and width in pixels.

    Returns:
        names: Caption names, of length n.
        rgba: Pictures with shape (n, size, size, 4), straight alpha, in [0, 1].
    """
    cache = DATA / f"noto-{VERSION}-{size}px.npz"
    if not cache.exists():
        icons = select_icons()
        bodies = tqdm(icons.values(), desc="rendering emoji", unit="emoji")
        rgba = np.stack([_render(body, size) for body in bodies])
        np.savez_compressed(cache, names=np.array(list(icons)), rgba=rgba.astype(np.float16))
    with np.load(cache) as stored:
        return stored["names"].tolist(), stored["rgba"].astype(np.float32)


def paint(rgba: np.ndarray, background: str) -> np.ndarray:
    """Put emoji on a coloured background.

    Args:
        rgba: Pictures with shape (n, SIZE, SIZE, 4) in [0, 1].
        background: A key of `BACKGROUNDS`.

    Returns:
        Pictures with shape (n, 3, SIZE, SIZE) in [-1, 1], as the VAE takes them.
    """
    colour = np.array(BACKGROUNDS[background], dtype=np.float32) / 255
    alpha = rgba[..., 3:]
    rgb = rgba[..., :3] * alpha + colour * (1 - alpha)
    return np.moveaxis(rgb * 2 - 1, -1, 1)
