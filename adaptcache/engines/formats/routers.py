"""Masks of layers by step, as Learning-to-Cache, HarmoniCa and ECAD publish them; they are only read.

References:
    | Learning-to-Cache (Ma et al., 2024), https://arxiv.org/abs/2406.01733
    | HarmoniCa (Huang et al., 2024), https://arxiv.org/abs/2410.01723
    | ECAD (Aggarwal et al., 2025), https://arxiv.org/abs/2506.15682
"""

import io
import math
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import ScheduleError
from ...forecasts.extrapolate import Extrapolate
from ...limits import read_bytes
from ...policies.table import Table
from ...schedule.rule import Rule, Site
from .mask import Format, Settings, check_steps

LEAST = 0.1  # of a router's sigmoid, from which on a layer is computed
LARGEST = 2**24  # bytes of a router
# ECAD's components by site, in the order in which the layers of a block are defined; of the two `proj_out` of a single
# block there is no site: it is computed wherever a block is.
COMPONENTS: dict[Site, tuple[str, ...]] = {
    "attention": ("attn1", "full_attn", "single_attn"),
    "cross-attention": ("attn2",),
    "mlp": ("ff", "full_ff", "full_ff_context", "single_proj_mlp"),
}


def load_router(path: str | Path) -> dict[str, Any]:
    """Returns the numbers in a router's file of weights, by name; nothing in it is run.

    Raises:
        ScheduleError: It cannot be read, or holds anything but tensors.
    """
    import torch

    try:
        data = torch.load(io.BytesIO(read_bytes(path, LARGEST)), map_location="cpu", weights_only=True)
        data = data["routers"] if isinstance(data, Mapping) and "routers" in data else data
        return {"routers": {str(name): value.flatten().float().tolist() for name, value in data.items()}}
    except OSError as error:
        raise ScheduleError(f"cannot read {path}: {error.strerror}") from None
    except (AttributeError, EOFError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise ScheduleError(f"{path} holds no router: {str(error).splitlines()[0]:.200}") from None


def tables(rows: Mapping[Site, Sequence[Sequence[bool]]]) -> Settings:
    """Returns the settings of masks by site: of each layer, by step, whether it is computed."""
    rules = [
        Rule(
            site=site,
            policy=Table(rows=tuple("".join("01"[bool(flag)] for flag in row) for row in own)),
            forecast=Extrapolate(order=0),
            each=True,
        )
        for site, own in rows.items()
        if own
    ]
    if not rules:
        raise ScheduleError("these masks are of no layers that are known")
    steps = check_steps(len(rows[rules[0].site][0]))
    return Settings(rules[0], steps, more=tuple(rules[1:]))


def read_router(data: Any, steps: int | None, pairs: bool = True) -> Settings:
    """Reads a router: for each step, last one first, a number for the attention and the MLP of each block in turn.

    Arguments:
        pairs: Whether every second step, the first one included, is computed in full, as Learning-to-Cache has it.
    """
    routers = data["routers"]
    if isinstance(routers, Mapping):  # "0.prob", "1.prob", ...
        named = sorted((int(name.split(".")[0]), row) for name, row in routers.items())
        if [number for number, _ in named] != list(range(len(named))):
            raise ScheduleError("a router has a row for each step, numbered from 0")
        routers = [row for _, row in named]
    if len({len(row) for row in routers}) != 1 or len(routers[0]) % 2:
        raise ScheduleError("a router has as many numbers at each step: two for each block")
    flags = [
        [full or 1 / (1 + math.exp(-min(max(float(value), -50.0), 50.0))) > LEAST for value in row]
        for number, row in reversed([*enumerate(routers)])
        for full in [number == len(routers) - 1 or (pairs and number % 2 == 1)]
    ]
    columns = list(zip(*flags, strict=True))
    return tables({"attention": columns[0::2], "mlp": columns[1::2]})


def read_harmonica(data: Any, steps: int | None) -> Settings:
    """Reads a router whose every step but the first has a choice."""
    return read_router(data, steps, pairs=False)


def read_ecad(data: Any, steps: int | None) -> Settings:
    """Reads whether each component of each block is computed, by step."""
    schedule = data["cache_schedule"]["schedule"]
    ordered = [schedule[key] for key in sorted(schedule, key=int)]
    blocks = sorted(ordered[0], key=lambda name: (name.startswith("single_"), int(name.removeprefix("single_"))))
    rows: dict[Site, list[list[bool]]] = {
        site: [
            [number == 0 or step[block][part] is True for number, step in enumerate(ordered)]
            for block in blocks
            for part in parts
            if part in ordered[0][block]
        ]
        for site, parts in COMPONENTS.items()
    }
    return tables(rows)


VOID = "it is a mask of layers, that no engine reads"
L2C = Format("l2c", "d45efce", read_router, keys=("routers",), void=VOID)
HARMONICA = Format("harmonica", "arXiv 2410.01723", read_harmonica, void=VOID)
ECAD = Format("ecad", "fb9e0e5", read_ecad, keys=("cache_schedule",), void=VOID)
