"""What verbs read and write: schedules, pipelines, the cache, and names of files."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument

if TYPE_CHECKING:
    from ..cache import Cache
    from ..presets import Preset
    from ..schedule.schedule import Schedule

LONGEST = 150  # characters of a default name
DTYPES = ("float32", "float16", "bfloat16")

Source = Annotated[str, Argument(help="A schedule: a file, a folder or user/repo.")]


def load_schedule(source: str) -> Schedule:
    """Loads a schedule from a file, a folder or the hub."""
    from ..schedule.schedule import Schedule

    path = Path(source).expanduser()
    return Schedule.load(path) if path.suffix == ".json" else Schedule.from_pretrained(source)


@dataclass(frozen=True)
class Loading:
    """How a pipeline is loaded.

    Arguments:
        offload: Where weights wait: "none", "model" or "group".
        dtype: Another precision than the preset's.
        compile: Whether the denoiser is compiled.
        loras: Files, folders or hub ids, each perhaps with "@SCALE".
    """

    offload: str = "none"
    dtype: str | None = None
    compile: bool = False
    loras: Sequence[str] = ()

    def preset(self, preset: Preset) -> Preset:
        """Returns a preset as it is to be loaded.

        Raises:
            ValueError: There is no such precision.
        """
        if self.dtype is None:
            return preset
        if self.dtype not in DTYPES:
            raise ValueError(f"--dtype is one of {', '.join(DTYPES)}, got {self.dtype!r}")
        return preset.model_copy(update={"dtype": self.dtype})

    @property
    def placement(self) -> dict[str, Any]:
        """What of it `Preset.load_pipeline` is asked for."""
        asked = {"offload": self.offload if self.offload != "none" else None, "loras": self.loras}
        return {name: value for name, value in asked.items() if value}

    @property
    def words(self) -> list[str]:
        """What of it belongs into the name of a schedule: what changes the outputs."""
        return [*filter(None, [self.dtype]), *(f"lora-{name}" for name in self.loras)]


def load_pipeline(
    preset: Preset, device: str | None = None, scheduler: str | None = None, loading: Loading | None = None
) -> Any:
    """Loads the pipeline of a preset with another sampler, if one is named, and without others' bars."""
    import diffusers

    from ..engines.diffusers.sampler import with_sampler
    from ..presets.preset import compile_denoisers

    loading = loading or Loading()
    loud = [diffusers.utils.logging]
    with suppress(ImportError):  # an extra
        import transformers

        loud.append(transformers.utils.logging)
    for library in loud if not logging.getLogger().isEnabledFor(logging.DEBUG) else ():
        library.set_verbosity_error()
        library.disable_progress_bar()
    pipe = loading.preset(preset).load_pipeline(device, **loading.placement)
    if loading.compile:
        compile_denoisers(pipe)
    return with_sampler(pipe, scheduler)


def find_model(given: str | None, schedules: Sequence[Schedule]) -> Preset:
    """Returns the preset of a model; of the one that a schedule was fitted on, where no model is named.

    Schedules come from strangers: only models that a preset knows are taken from them.
    """
    from ..presets import Preset, names, resolve
    from .options import DEMO

    fitted_on = {schedule.denoiser.checkpoint for schedule in schedules}
    for preset in map(Preset.load, names() if given is None and schedules else ()):
        if {preset.name, preset.checkpoint} & fitted_on:
            return preset
    return resolve(given or DEMO)


def open_cache(folder: Path | None = None) -> Cache:
    """Returns the cache of full runs, if it can be written: a profile that cannot be kept is lost work."""
    from ..cache import Cache

    cache = Cache(folder)
    cache.check_writable()
    return cache


def default_name(*parts: object) -> str:
    """Returns a name for files, of all that is not default: what differs is not to overwrite."""
    words = (re.sub(r"[^\w.=+,-]+", "_", str(part)).strip("_") for part in parts if part not in (None, ""))
    return "-".join(words)[:LONGEST]


def quality_words(min_psnr: float | None, max_failure_rate: float, confidence: float) -> list[str | None]:
    """Returns a quality target as words of a name: decibels, then what else is not default."""
    if min_psnr is None:
        return []
    more = [f"rate{max_failure_rate:g}" if max_failure_rate != 0.05 else None]
    return [f"{min_psnr:g}dB", *more, f"confidence{confidence:g}" if confidence != 0.95 else None]


def wrote(path: Path) -> str:
    """Returns how to say that a path was written; to be asked before, as what is replaced is said."""
    return f"{'replaced' if path.exists() else 'wrote'} {path}"
