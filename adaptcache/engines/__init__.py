"""Who runs the denoising loop, and the settings files of engines that are only written and read."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from ..cache import Cache
from ..distributed import ALONE
from ..runs import PipelineCall, Setup, silent

OF_RUNS = ("seed", "batch_size", "cache", "cache_dir", "ranks", "progress", "pipe_kwargs")
LIKE = 0.7  # how much of two names has to agree for one to be suggested for the other

Options = TypeVar("Options")


def engine_for(pipe: Any) -> Any:
    """Returns the engine that runs a pipeline; an engine is returned as it is."""
    if hasattr(pipe, "run") and hasattr(pipe, "identity"):
        return pipe
    from .diffusers.engine import DiffusersEngine

    return DiffusersEngine(pipe)


def take(kind: type[Options], options: dict[str, Any]) -> Options:
    """Returns a dataclass of those options that are its fields, and takes them out."""
    return kind(**{one.name: options.pop(one.name) for one in fields(kind) if one.name in options})  # type: ignore[arg-type]


def make_setup(
    pipe: Any, steps: int, options: Mapping[str, Any], verb: str = "make_setup", known: Iterable[str] = ()
) -> Setup:
    """Returns who runs, and how, from the options of a public function.

    Arguments:
        pipe: A pipeline, or an engine.
        steps: `num_inference_steps` of a full run.
        options: `seed`, `batch_size`, `cache_dir` (a folder, or a `Cache`), `ranks`, `progress`, and arguments of the
            pipeline: those that its call names by themselves, any of them as `pipe_kwargs`.
        verb: The function.
        known: Names of what else it takes, for suggestions.

    Raises:
        OSError: Nothing can be kept in the cache.
        TypeError: An argument is given twice, or neither the function nor the pipeline's call names it.
    """
    engine = engine_for(pipe)
    own = {name: options[name] for name in OF_RUNS if name in options}
    rest = {name: value for name, value in options.items() if name not in OF_RUNS}
    taken = engine.takes(rest)
    together = dict(own.get("pipe_kwargs") or {})
    if twice := sorted(together.keys() & taken.keys()):
        raise TypeError(f"{', '.join(twice)} is given twice, by itself and in pipe_kwargs: give it once")
    call = PipelineCall(steps, together | taken, own.get("seed", 0))
    cache = own.get("cache_dir") or own.get("cache")
    if isinstance(cache, (str, Path)):
        cache = Cache(cache)
    if cache is not None:
        if not isinstance(cache, Cache):
            raise TypeError(f"cache_dir must be a folder or a Cache, got {cache!r:.40}")
        cache.check_writable()
    ranks = own.get("ranks") or ALONE
    progress = own.get("progress", ranks.rank == 0)  # True draws a bar on the terminal
    if not callable(progress):
        progress = bar() if progress else silent
    # Where the call has `**kwargs`, a misspelt option would be swallowed: what it does not name goes to `pipe_kwargs`.
    if unknown := sorted(rest.keys() - taken.keys()):
        near = [difflib.get_close_matches(name, {*known, *OF_RUNS}, 1, LIKE) for name in unknown]
        say = (
            f"{name} (did you mean {found[0]}?)" if found else name for name, found in zip(unknown, near, strict=True)
        )
        raise TypeError(
            f"{verb} takes no {', '.join(say)}, and the pipeline's call does not name it; what goes there by **kwargs "
            "has to be given as pipe_kwargs={...}"
        )
    return Setup(engine, call, own.get("batch_size", 1), cache, ranks, progress)


def bar() -> Callable[[str, int, int], None]:
    """Returns a function that draws a bar a stage, as diffusers does for steps."""
    from tqdm.auto import tqdm

    bars: dict[str, Any] = {}

    def report(stage: str, done: int, of: int) -> None:
        if stage not in bars:
            for name in list(bars):
                bars.pop(name).close()
            bars[stage] = tqdm(total=of, desc=stage)
        bars[stage].update(max(0, done - bars[stage].n))
        if done >= of:
            bars.pop(stage).close()

    return report
