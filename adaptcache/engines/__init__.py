"""Who runs the denoising loop, and the settings files of engines that are only written and read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..cache import Cache
from ..distributed import ALONE
from ..runs import PipelineCall, Progress, Setup, silent

__all__ = ["engine_for", "make_setup"]

OF_RUNS = ("seed", "batch_size", "cache", "cache_dir", "ranks", "progress", "pipe_kwargs")


def engine_for(pipe: Any) -> Any:
    """Returns the engine that runs a pipeline; an engine is returned as it is."""
    if hasattr(pipe, "run") and hasattr(pipe, "identity"):
        return pipe
    from .diffusers.engine import DiffusersEngine

    return DiffusersEngine(pipe)


def make_setup(pipe: Any, steps: int, options: Mapping[str, Any]) -> tuple[Setup, dict[str, Any]]:
    """Returns who runs, and how, from the options of a public function; and what is left of them.

    Arguments:
        pipe: A pipeline, or an engine.
        steps: `num_inference_steps` of a full run.
        options: `seed`, `batch_size`, `cache_dir` (or a `cache`), `ranks`, `progress`, and arguments of the pipeline,
            by themselves or as `pipe_kwargs`.
    """
    engine = engine_for(pipe)
    own = {name: options[name] for name in OF_RUNS if name in options}
    rest = {name: value for name, value in options.items() if name not in OF_RUNS}
    taken = engine.takes(rest)
    pipe_kwargs = {**(own.get("pipe_kwargs") or {}), **taken}
    call = PipelineCall(steps, pipe_kwargs, own.get("seed", 0))
    cache = own.get("cache") or (Cache(own["cache_dir"]) if own.get("cache_dir") else None)
    setup = Setup(
        engine,
        call,
        own.get("batch_size", 1),
        cache,
        own.get("ranks") or ALONE,
        as_progress(own.get("progress", True)),
    )
    return setup, {name: value for name, value in rest.items() if name not in taken}


def as_progress(progress: Progress | bool | None) -> Progress:
    """Returns a function that reports progress: a bar on the terminal for True, nothing for False."""
    if callable(progress):
        return progress
    return bar() if progress else silent


def bar() -> Callable[[str, int, int], None]:
    """Returns a function that draws a bar a stage, as diffusers does for steps."""
    from tqdm.auto import tqdm

    bars: dict[str, Any] = {}

    def report(stage: str, done: int, of: int) -> None:
        if stage not in bars:
            for other in bars.values():
                other.close()
            bars[stage] = tqdm(total=of, desc=stage)
        bars[stage].update(max(0, done - bars[stage].n))
        if done >= of:
            bars[stage].close()

    return report
