"""Real artifacts to start from, and how each kind is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from adaptcache.engines.formats import FORMATS, export
from adaptcache.engines.formats.read import read_schedule
from adaptcache.errors import ScheduleError
from adaptcache.files import dump_json
from adaptcache.forecasts import FORECASTS
from adaptcache.forecasts.extrapolate import Extrapolate
from adaptcache.policies import POLICIES
from adaptcache.policies.plan import Plan
from adaptcache.policies.replay import replay
from adaptcache.presets import Preset
from adaptcache.presets.prompts import calibration_folder, read_prompts
from adaptcache.profile import SHAPES, Profile
from adaptcache.schedule.format import Denoiser, Evidence, Grid, Kernel
from adaptcache.schedule.rule import Rule
from adaptcache.schedule.schedule import Schedule
from tests import toy

N = 12  # steps


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
    """Returns a schedule for each policy, and for each forecast, fitted to a real profile."""
    measured = toy.profile(N)
    times = tuple(map(float, measured.times))
    plan = POLICIES["plan"].fit(measured, budget=0.5)
    policies = [policy.fit(measured, budget=0.5) for policy in POLICIES.values()]
    # What blocks tell is not to be had at the site `step`.
    apart = [p.model_copy(update={"on": "input"}) if getattr(p, "on", None) else p for p in policies]
    rules = [Rule(policy=policy, forecast=Extrapolate()) for policy in apart]
    steps = replay(plan, measured)
    rules += [Rule(policy=plan, forecast=forecast.fit(measured, steps)) for forecast in FORECASTS.values()]
    gram = tuple(map(tuple, measured.kernel.tolist()))
    figures = {"mean": 40.5, "p05": 38.0}
    return [
        dump_json(
            Schedule(
                name="seed", denoiser=Denoiser(class_name="FluxTransformer2DModel", checkpoint="a/b"),
                grid=Grid(scheduler="FlowMatchEulerDiscreteScheduler", times=times), rules=(rule,),
                kernel=Kernel(times=times, gram=gram, sensitivity=(1.0,) * N),
                evidence=Evidence(prompts="4 held-out", n=4, calls=(4, N), psnr=figures, speed=2.0),
                made={"torch": "2", "seed": 0, "call": {"height": 16, "guidance": 3.5}, "loras": []},
            ).model_dump(by_alias=True, exclude_none=True)
        )
        for rule in rules
    ]  # fmt: skip


def settings() -> list[bytes]:
    """Returns the files that are written for other engines, and some that only are read."""
    times = tuple(1 - i / N for i in range(N))
    plan = Schedule(name="seed", grid=Grid(times=times), rules=(
        Rule(policy=Plan.of([0, 1, 4, 8, 11], times), forecast=Extrapolate()),))  # fmt: skip
    polynomial = Schedule.of("teacache", model="flux", threshold=0.4)
    forms = [form for form in FORMATS.values() if form.write]
    written = [export(plan, form.name) for form in forms]
    written += [export(polynomial, form.name) for form in forms if form.write_polynomial]
    read = [
        "--scm-mask 1,0,1",
        "[1, 0, 0]",
        '{"cache_step": [1], "steps": 3}',
        '{"attn": [1, 0], "ff": [1, 1]}',
    ]
    return [*(one.text.encode() for one in written), *map(str.encode, read)]


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
        "settings": Kind(".json", read_schedule, ScheduleError, settings()),
        "profile": Kind(".safetensors", Profile.load, ScheduleError, [profile()]),
        "preset": Kind(".toml", Preset.load, ValueError, presets),
        "prompts": Kind(".txt", read_prompts, ValueError, prompts),
    }
