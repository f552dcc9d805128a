"""The drawings: two icon sets, rendered once, with transparent backgrounds."""

import io
import json
import subprocess
import tarfile
from typing import NamedTuple

import numpy as np
import resvg_py
import torch
from PIL import Image
from tqdm import tqdm

from ..demo.data import DATA
from .motifs import icons

SIDE = 128  # of a drawing in pixels: twice that of a picture, so that moved ones are smooth


class IconSet(NamedTuple):
    """An npm package with `icons.json`, and the side of its view box."""

    package: str
    version: str
    box: int


SETS = {
    "noto": IconSet("@iconify-json/noto", "1.2.9", 128),
    "flat": IconSet("@iconify-json/fluent-emoji-flat", "1.2.6", 32),
}


def read_bodies(chosen: IconSet) -> dict[str, str]:
    """Fetch the package of an icon set once and read its icons.

    Returns:
        SVG bodies by icon name ("red-heart").

    Raises:
        RuntimeError: If npm is missing or could not fetch the package.
    """
    wanted = f"{chosen.package}@{chosen.version}"
    archive = DATA / f"{chosen.package[1:].replace('/', '-')}-{chosen.version}.tgz"
    if not archive.exists():
        DATA.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["npm", "pack", wanted], cwd=DATA, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise RuntimeError(
                f"{wanted} could not be fetched ({error}); install npm, or put {archive.name} into {DATA}"
            ) from error
    with tarfile.open(archive) as tar:
        found = json.load(tar.extractfile("package/icons.json"))["icons"]
    return {name: icon["body"] for name, icon in found.items()}


def render(body: str, box: int) -> np.ndarray:
    """Render an icon, with shape (4, SIDE, SIDE), straight alpha, as bytes."""
    links = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f'<svg {links} viewBox="0 0 {box} {box}">{body}</svg>'
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE, skip_system_fonts=True)
    return np.moveaxis(np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA")), -1, 0)


def load_icons() -> torch.Tensor:
    """Load the icons in the order of `motifs.icons`, rendering them on the first call.

    Returns:
        Bytes with shape (n, 4, SIDE, SIDE), straight alpha.
    """
    cache = DATA / "icons-64.npz"
    if not cache.exists():
        bodies = {style: read_bodies(chosen) for style, chosen in SETS.items()}
        wanted = [(bodies[style][name.replace(" ", "-")], SETS[style].box) for name, style in icons()]
        drawings = [render(*icon) for icon in tqdm(wanted, desc="rendering icons", unit="icon")]
        np.savez_compressed(cache, icons=np.stack(drawings))
    with np.load(cache) as stored:
        return torch.from_numpy(stored["icons"])
