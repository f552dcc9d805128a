"""What verbs read and write: schedules, pipelines, the cache, and names of files."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument

from .options import CONFIDENCE, DEMO, MAX_FAILURE_RATE
from .screen import progress

if TYPE_CHECKING:
    from ..cache import Cache
    from ..evaluation.evaluate import Row
    from ..evaluation.generate import Generation
    from ..presets import Preset
    from ..presets.prompts import Prompts
    from ..schedule.schedule import Schedule

LONGEST = 150  # bytes of a default name
DTYPES = ("float32", "float16", "bfloat16")

Source = Annotated[str, Argument(help="A schedule: a file, a folder or user/repo.")]


def load_schedule(source: str) -> Schedule:
    """Loads a schedule from a file, a folder or the hub."""
    from ..schedule.schedule import Schedule

    return Schedule.from_pretrained(source)


def load_pipeline(
    preset: Preset, device: str | None = None, scheduler: str | None = None, *, offload: str = "none",
    dtype: str | None = None, compile: bool = False, loras: Sequence[str] = (),
) -> Any:  # fmt: skip
    """Loads the pipeline of a preset, with another sampler or precision if one is named, and without others' bars.

    Weights wait as `Preset.load_pipeline` has it, which reads the LoRAs too.

    Raises:
        ValueError: There is no such precision.
    """
    import diffusers

    from ..engines.diffusers.sampler import sampler, with_sampler
    from ..presets.preset import compile_denoisers

    if dtype not in (None, *DTYPES):
        raise ValueError(f"--dtype is one of {', '.join(DTYPES)}, got {dtype!r}")
    loud = [diffusers.utils.logging]
    with suppress(ImportError):  # an extra
        import transformers

        loud.append(transformers.utils.logging)
    for library in loud if not logging.getLogger().isEnabledFor(logging.DEBUG) else ():
        library.set_verbosity_error()
        library.disable_progress_bar()
    if scheduler and (before := own_scheduler(preset.folder or preset.checkpoint)):
        sampler(scheduler, before)  # raises before the weights are read
    preset = preset.model_copy(update={"dtype": dtype or preset.dtype})
    pipe = preset.load_pipeline(device, offload=offload, loras=loras)
    if compile:
        compile_denoisers(pipe)
    return with_sampler(pipe, scheduler)


def own_scheduler(source: str | Path) -> Any:
    """Returns the scheduler of a checkpoint without its weights; None where loading the pipeline will say why not."""
    import diffusers

    with suppress(Exception):
        _, kind = diffusers.DiffusionPipeline.load_config(source)["scheduler"]
        return getattr(diffusers, kind).from_pretrained(source, subfolder="scheduler")


def find_model(given: str | None, schedules: Sequence[Schedule]) -> Preset:
    """Returns the preset of a model; of the one that a schedule was fitted on, where no model is named.

    Schedules come from strangers: only models that a preset knows are taken from them.
    """
    from ..presets import Preset, names, resolve

    fitted_on = {schedule.denoiser.checkpoint for schedule in schedules}
    for preset in map(Preset.load, names() if given is None and schedules else ()):
        if {preset.name, preset.checkpoint} & fitted_on:
            return preset
    return resolve(given or DEMO)


def measure_schedules(
    pipe: Any, preset: Preset, known: Prompts, schedules: Sequence[Schedule], *, eval_on: int,
    kept: str = "nothing was written", steps: int | None = None, **options: Any,
) -> tuple[list[Row], list[Generation]]:  # fmt: skip
    """Runs held-out prompts in full, by each schedule, and by as many plain steps, as `evaluate_schedules` does.

    At most `eval_on` prompts; `kept` is said to be kept where that is stopped; options are those of `make_setup`.
    """
    from ..engines import make_setup
    from ..evaluation.evaluate import evaluate_schedules
    from ..runs import PromptSet

    with progress(kept=kept) as report:
        steps = preset.steps if steps is None else steps
        setup = make_setup(pipe, steps, {"progress": report, "pipe_kwargs": preset.call, **options})
        return evaluate_schedules(setup, PromptSet(known.held_out[:eval_on], len(known.calibration)), schedules)


def open_cache() -> Cache:
    """Returns the cache of full runs, if it can be written: a profile that cannot be kept is lost work."""
    from ..cache import Cache

    cache = Cache()
    cache.check_writable()
    return cache


def default_name(*parts: object) -> str:
    """Returns a name for files, of all that is not default: what differs is not to overwrite, long names neither."""
    words = (re.sub(r"[^\w.=+,-]+", "_", str(part)).strip("_") for part in parts if part not in (None, ""))
    name = "-".join(words)
    if len(whole := name.encode()) > LONGEST:
        name = f"{whole[: LONGEST - 9].decode(errors='ignore')}-{hashlib.sha256(whole).hexdigest()[:8]}"
    return name


def changed(**values: tuple[float | None, float | None]) -> list[str]:
    """Returns a word for each value that is not the usual one beside it: "fit8"."""
    return [f"{word}{value:.12g}" for word, (value, usual) in values.items() if value not in (None, usual)]


def read_budgets(option: str, text: str) -> list[float]:
    """Returns the budgets of an option's list, which is separated by commas."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} takes budgets such as 0.5,0.36,0.25, got {text[:40]!r}") from None


def quality_words(min_psnr: float | None, max_failure_rate: float, confidence: float) -> list[str]:
    """Returns a quality target as words of a name: decibels, then what else is not default."""
    if min_psnr is None:
        return []
    more = changed(rate=(max_failure_rate, MAX_FAILURE_RATE), confidence=(confidence, CONFIDENCE))
    return [f"{min_psnr:g}dB", *more]


def wrote(path: Path) -> str:
    """Returns how to say that a path was written; to be asked before, as what is replaced is said."""
    return f"{'replaced' if path.exists() else 'wrote'} {path}"
