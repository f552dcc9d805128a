"""How good an export is in its own engine, where that engine runs here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import yaml

from ...evaluation.metrics import psnr, summary
from ...profiling.reference import Progress
from ...runs import Call, Prompt
from ..diffusers.watch import denoisers_of
from .mask import Exported

__all__ = ["MEASURABLE", "applied", "left_as_found", "measured"]

MEASURABLE = ("diffusers", "cache-dit")


@contextmanager
def applied(pipe: Any, exported: Exported) -> Iterator[None]:
    """Lets the engine run a pipeline by an export, and takes it off again.

    Raises:
        LookupError: The engine does not run diffusers pipelines.
    """
    if exported.engine not in MEASURABLE:
        raise LookupError(f"{exported.engine} does not run here; {' and '.join(MEASURABLE)} can be measured")
    with ExitStack() as undo:
        if exported.engine == "diffusers":
            from diffusers import MagCacheConfig

            denoiser: Any = denoisers_of(pipe)[0]
            denoiser.enable_cache(MagCacheConfig(**json.loads(exported.text)))
            undo.callback(denoiser.disable_cache)
        else:
            import cache_dit

            for one in denoisers_of(pipe):
                undo.enter_context(left_as_found(one))
            cache_dit.enable_cache(pipe, **cache_dit.load_configs(yaml.safe_load(exported.text)))
            undo.callback(cache_dit.disable_cache, pipe)
        yield


@contextmanager
def left_as_found(denoiser: Any) -> Iterator[None]:
    """Restores what cache-dit does not: the forward, and the order of parts, by which others' hooks go."""
    own, parts = dict(vars(denoiser)), dict(denoiser._modules)
    try:
        yield
    finally:
        for now, before in ((vars(denoiser), own), (own["_modules"], parts)):
            now.clear()
            now.update(before)


def measured(
    pipe: Any,
    call: Call,
    prompts: Sequence[Prompt],
    exported: Exported,
    *,
    first: int = 0,
    progress: Progress = lambda done: None,
) -> dict[str, float]:
    """Returns the quality of decoded outputs in decibels against the full run, mean and 5th percentile.

    Arguments:
        pipe: A diffusers pipeline; it is as it was afterwards.
        call: How to call it.
        prompts: What to generate: prompts that nothing was fitted on.
        exported: The export.
        first: The number of the first prompt, which sets the noise.
        progress: Told the number of runs done after each.
    """

    def images(done: int) -> list[np.ndarray]:
        made = []
        for number, prompt in enumerate(prompts):
            made.append(np.asarray(call(pipe, [prompt], first + number, output_type="np"))[0])
            progress(done + number + 1)
        return made

    full = images(0)
    with applied(pipe, exported):
        cached = images(len(prompts))
    return summary([psnr(a, b) for a, b in zip(cached, full, strict=True)])
