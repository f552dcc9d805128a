"""Real artifacts to start from, and how each kind is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from adaptcache.errors import ScheduleError
from adaptcache.files import dump_json
from adaptcache.forecasts import FORECASTS
from adaptcache.policies import POLICIES
from adaptcache.presets import Preset
from adaptcache.profile import SHAPES, Profile
from adaptcache.prompts import calibration_folder, read_prompts
from adaptcache.schedule import Schedule

N = 8
TIMES = [1 - i / N for i in range(N)]


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Arguments:
        ending: Of the file's name.
        read: Reads a file.
        refusal: What it may raise.
        seeds: Contents of real files.
    """

    ending: str
    read: Callable[[Path], Any]
    refusal: type[Exception]
    seeds: list[bytes]


def schedules() -> list[bytes]:
    """Returns a schedule for each policy with each forecast that has defaults, and a matched one."""
    gear = {"budget": 0.25, "compute": [TIMES[0], TIMES[3]]}
    rows = [[] if i in (0, 3) else [0.5, 1.5, -0.25, 1e-9] for i in range(N)]
    special = {"plan": {"gears": [gear]}, "matched": {"table": [[rows]]}}
    found = []
    for policy in POLICIES:
        for forecast in FORECASTS:
            if forecast == "matched" and policy != "plan":
                continue  # refused: its weights belong to a plan
            rule = {
                "site": "step",
                "policy": {"type": policy, **special.get(policy, {})},
                "forecast": {"type": forecast, **special.get(forecast, {})},
            }
            gram = np.cos(np.subtract.outer(TIMES, TIMES)).tolist()
            content = {
                "format": 1, "name": f"{policy}-{forecast}", "grid": {"scheduler": "Euler", "times": TIMES},
                "denoiser": {"class": "FluxTransformer2DModel", "config_hash": "0123", "checkpoint": "a/b"},
                "rules": [rule], "kernel": {"times": TIMES, "gram": gram, "sensitivity": [1.0] * N},
                "evidence": {
                    "prompts": "4 held-out", "n": 4, "calls": [2, N], "speed": 4.0,
                    "psnr": {"mean": 40.5, "p05": 38.0}, "ssim": {"mean": 0.98, "p05": 0.9},
                },
                "made": {"torch": "2", "seed": 0, "call": {"height": 16, "guidance": 3.5}, "loras": []},
            }  # fmt: skip
            found.append(dump_json(content))
    return found


def profile() -> bytes:
    """Returns a profile of 3 prompts with 4 steps."""
    sizes, rng = {"P": 3, "N": 4, "M": 8, "Q": 1}, np.random.default_rng(0)
    arrays = {name: rng.random([sizes[letter] for letter in letters]) for name, letters in SHAPES.items()}
    arrays["times"] = np.array([1.0, 0.75, 0.5, 0.25])
    return safetensors.numpy.save(arrays, metadata={"about": '{"steps": 4}'})


def kinds() -> dict[str, Kind]:
    """Returns all kinds of files that are read from strangers."""
    folder = calibration_folder()
    presets = [path.read_bytes() for path in sorted(folder.glob("models/*.toml"))]
    prompts = [path.read_bytes() for path in sorted(folder.glob("prompts/*.txt"))]
    prompts.append("[calibration]\na\nb\n# c\n[held-out]\nd é\n".encode())
    return {
        "schedule": Kind(".json", Schedule.load, ScheduleError, schedules()),
        "profile": Kind(".safetensors", Profile.load, ScheduleError, [profile()]),
        "preset": Kind(".toml", Preset.load, ValueError, presets),
        "prompts": Kind(".txt", read_prompts, ValueError, prompts),
    }
