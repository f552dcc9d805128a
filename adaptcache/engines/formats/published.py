"""What other codes publish and no engine reads: masks, skipped steps, command lines, and masks of layers by step.

References:
    | Learning-to-Cache (Ma et al., 2024), https://arxiv.org/abs/2406.01733
    | HarmoniCa (Huang et al., 2024), https://arxiv.org/abs/2410.01723
    | ECAD (Aggarwal et al., 2025), https://arxiv.org/abs/2506.15682
"""

import io
import math
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import ScheduleError
from ...forecasts.extrapolate import Extrapolate
from ...limits import read_bytes
from ...policies.table import Table
from ...schedule.rule import Rule, Site
from .mask import Format, Settings, check_steps, reuse_by_mask

LEAST = math.log(0.1 / 0.9)  # of a router's number, above which a layer is computed: its sigmoid is above 0.1
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
    except (AttributeError, EOFError, LookupError, RuntimeError, TypeError, ValueError, pickle.PickleError) as error:
        raise ScheduleError(f"{path} holds no router, tensors by name: {f'{error} '.splitlines()[0]:.200}") from None


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


def in_order(rows: Mapping[Any, Any], pattern: str, first: str) -> list[Any]:
    """Returns what is numbered in names, from 0 on.

    Raises:
        ScheduleError: A name has no number, or one is missing.
    """
    numbered = {}
    for name, row in rows.items():
        if (found := re.search(pattern, str(name))) is None:
            raise ScheduleError(f"{str(name)!r:.40} has no number where one is needed: names go on from {first!r}")
        numbered[int(found[1])] = row
    if missing := set(range(len(rows))) - numbered.keys():
        raise ScheduleError(f"number {min(missing)} is missing, or one is double, in {len(rows)} names like {first!r}")
    return [numbered[number] for number in range(len(rows))]


def check_numbers(routers: Any) -> None:
    """Raises where a router has not two finite numbers for each block at each step."""
    if not isinstance(routers, Sequence) or not routers:
        raise ScheduleError(f"a router has a row of numbers for each step, got {routers!r:.40}")
    for number, row in enumerate(routers):
        if not isinstance(row, Sequence) or not row or len(row) % 2 or len(row) != len(routers[0]):
            raise ScheduleError(
                f"row {number} of the router is {row!r:.40}: each row needs two numbers for each block"
            )
        for value in row:
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
                raise ScheduleError(f"row {number} of the router has {value!r:.40}, which is no finite number")


def read_router(data: Any, steps: int | None, pairs: bool = True) -> Settings:
    """Reads a router: for each step, last one first, a number for the attention and the MLP of each block in turn.

    Arguments:
        pairs: Whether every second step, the first one included, is computed in full, as Learning-to-Cache has it; in
            HarmoniCa every step but the first has a choice.
    """
    routers = data["routers"]
    if isinstance(routers, Mapping):  # "0.prob", "1.prob", ...
        routers = in_order(routers, r"(\d+)(?:\.[a-z]+)?$", "0.prob")
    check_numbers(routers)
    flags = [
        [full or value > LEAST for value in row]
        for number, row in reversed([*enumerate(routers)])
        for full in [number == len(routers) - 1 or (pairs and number % 2 == 1)]
    ]
    if all(map(all, flags)):
        raise ScheduleError(
            f"this router computes all: no number that counts is below {LEAST:.2f}, the logit of 0.1; "
            "where they are probabilities or a mask, take their logits, log(p / (1 - p))"
        )
    columns = list(zip(*flags, strict=True))
    return tables({"attention": columns[0::2], "mlp": columns[1::2]})


def read_ecad(data: Any, steps: int | None) -> Settings:
    """Reads whether each component of each block is computed, by step."""
    whole = data["cache_schedule"]
    ordered = in_order(whole["schedule"], r"^(\d+)$", "000")
    count = whole.get("num_inference_steps", len(ordered))
    if count != len(ordered):
        raise ScheduleError(f"'num_inference_steps' is {count!r:.40}, and the schedule has {len(ordered)} steps")
    kinds = [{name: name for name in ordered[0] if name.startswith("single_") == single} for single in (False, True)]
    blocks = [*in_order(kinds[0], r"^(\d+)$", "0"), *in_order(kinds[1], r"^single_(\d+)$", "single_0")]
    for number, step in enumerate(ordered):
        check_step(number, step, ordered[0])
    rows: dict[Site, list[list[bool]]] = {
        site: [
            [number == 0 or bool(step[block][part]) for number, step in enumerate(ordered)]
            for block in blocks
            for part in parts
            if part in ordered[0][block]
        ]
        for site, parts in COMPONENTS.items()
    }
    return tables(rows)


def check_step(number: int, step: Mapping[str, Any], first: Mapping[str, Any]) -> None:
    """Raises where a step of ECAD's has not what the first one has, or anything but true and false for it."""
    known = [part for parts in COMPONENTS.values() for part in parts]
    for name in {**first, **step}:
        here, there = step.get(name, {}), first.get(name, {})
        for part in {**there, **here}:
            if part not in (*known, "single_proj_out"):
                raise ScheduleError(f"block {name!r} has a component {part!r:.40}; there are: {', '.join(known)}")
            if not isinstance(here.get(part), bool) or part not in there:
                raise ScheduleError(
                    f"{part!r} of block {name!r} is {here.get(part)!r:.40} at step {number}, at the first "
                    f"{there.get(part)!r:.40}: all steps need the same blocks and components, each true or false"
                )


VOID = "it is a mask of layers, that no engine reads"
L2C = Format("l2c", "d45efce", read_router, keys=("routers",), void=VOID)
HARMONICA = Format("harmonica", "arXiv 2410.01723", partial(read_router, pairs=False), void=VOID)
ECAD = Format("ecad", "fb9e0e5", read_ecad, keys=("cache_schedule",), void=VOID)


# Lists of steps

LAYER_TYPES: dict[str, Site] = {  # of SmoothCache, by what they are in diffusers and in DiT's code
    "attn": "attention", "attn1": "attention", "attn2": "cross-attention", "cross_attn": "cross-attention",
    "ff": "mlp", "mlp": "mlp",
}  # fmt: skip


def read_components(data: Any, steps: int | None) -> Settings:
    """Reads SmoothCache's lists by component.

    Each type of layers follows its own; where a name is of none, a step is computed where any component is.
    """
    lengths = {name: len(values) for name, values in data.items()}
    if len(set(lengths.values())) > 1:
        raise ScheduleError(f"the lists of components have one length, got {lengths!r:.60}")
    sites = [LAYER_TYPES.get(name) for name in data]
    if None in sites or len(set(sites)) < len(sites):
        return reuse_by_mask([max(values) for values in zip(*data.values(), strict=True)])
    first, *more = [reuse_by_mask(values, site) for values, site in zip(data.values(), sites, strict=True) if site]
    return replace(first, more=tuple(settings.rule for settings in more))


def read_skipped(data: Any, steps: int | None) -> Settings:
    """Reads BudCache's list of the steps that are *not* computed."""
    skipped = data
    if isinstance(data, Mapping):
        skipped, steps = data["cache_step"], data.get("num_inference_steps") or data.get("steps") or steps
    if not steps:
        raise ScheduleError("'cache_step' without the number of steps: add 'num_inference_steps'")
    steps = check_steps(steps)
    if wrong := [step for step in skipped if not isinstance(step, int) or not 0 <= step < steps]:
        raise ScheduleError(f"a skipped step is not in [0, {steps - 1}], got {wrong[0]!r:.40}: is it for other steps?")
    return reuse_by_mask([int(step not in skipped) for step in range(steps)])


SD_CPP = Format(
    "sd.cpp", "of 2026-08 (97d2990)", lambda data, steps: reuse_by_mask(data["scm-mask"]), keys=("scm-mask",),
    void="it parses --scm-mask and does not follow it: a threshold decides, between 15 and 95 % of the steps",
)  # fmt: skip
SMOOTHCACHE = Format("smoothcache", "arXiv 2411.10510", read_components)
BUDCACHE = Format("budcache", "", read_skipped, keys=("cache_step",))
MASK = Format("mask", "", lambda data, steps: reuse_by_mask(data))
