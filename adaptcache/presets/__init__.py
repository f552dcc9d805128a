"""Presets: how a known checkpoint is loaded and called, one TOML file each.

Finding a preset stands with the class, though the file grows long: each asks the other for names.
"""

import difflib
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..limits import PROMPTS, STEPS, check_name, check_plain, first_fault, read_bytes
from .checkpoint import CheckpointError, load_pipeline
from .prompts import Prompts, calibration_folder, read_prompts

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = [
    "CheckpointError",
    "Preset",
    "Prompts",
    "calibration_folder",
    "names",
    "read_prompts",
    "resolve",
]

LARGEST = 16_384  # bytes; real presets have about 500
DOTS = 200  # in all: a key of a thousand parts takes a TOML parser quadratic time
OURS = {"prompt", "num_inference_steps", "generator", "latents", "output_type"}


class Preset(BaseModel):
    """How to load a pipeline and how to call it.

    Arguments:
        name: The name of the TOML file, or the last part of the folder or hub id.
        about: One line for people.
        checkpoint: A hub id, a folder, or a folder below `calibration/` ("demo/emoji-flux").
        pipeline: A pipeline class of diffusers; "DiffusionPipeline" asks the checkpoint.
        dtype: What the weights are loaded in. CPUs get float32 instead of float16.
        variant: The variant of the weight files, for instance "fp16".
        steps: The number of scheduler steps.
        prompts: A file in `calibration/prompts`, or a path.
        gated: Whether access to the checkpoint must be requested.
        batch_size: How many prompts one calibration run has: as many as fit.
        call: Further arguments of the pipeline's `__call__`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, AfterValidator(check_name)]
    about: str = ""
    checkpoint: Annotated[str, Field(max_length=4096)]
    pipeline: Annotated[str, Field(pattern=r"^[A-Z]\w*$", max_length=200)] = "DiffusionPipeline"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    variant: Annotated[str, AfterValidator(check_name)] | None = None
    steps: int = Field(default=28, ge=1, le=STEPS)
    prompts: Annotated[str, Field(max_length=4096)] = "general"
    gated: bool = False
    batch_size: int = Field(default=1, ge=1, le=PROMPTS)
    call: dict[str, Any] = Field(default_factory=dict)

    @field_validator("call")
    @classmethod
    def _leaves_ours(cls, call: dict[str, Any]) -> dict[str, Any]:
        if taken := OURS & call.keys():
            raise ValueError(f"adaptcache sets {', '.join(sorted(taken))} itself; remove it")
        check_plain(call)
        return call

    @classmethod
    def load(cls, name_or_path: str | Path) -> Self:
        """Loads an embedded preset by name, or any other by the path of its TOML file.

        Raises:
            LookupError: If there is no such preset.
            ValueError: If the file is not a preset.
        """
        embedded = calibration_folder() / "models" / f"{name_or_path}.toml"
        path = embedded if str(name_or_path) in names() else Path(name_or_path).expanduser()
        if path.suffix != ".toml" or not path.is_file():
            raise LookupError(_no_such_model(str(name_or_path)))
        try:
            content = read_bytes(path, LARGEST)
            if content.count(b".") > DOTS:
                raise ValueError(f"it has more than {DOTS} dots")
            data = tomllib.loads(content.decode("utf-8"))
            return cls.model_validate({"name": path.stem, **data})
        except ValidationError as error:
            raise ValueError(f"{path} is not a preset: {first_fault(error)}") from error
        except OSError as error:
            raise ValueError(f"{path} cannot be read as a preset: {error.strerror}") from error
        except (ValueError, RecursionError) as error:  # neither TOML nor UTF-8, or nested too deeply
            raise ValueError(f"{path} is not a TOML file: {error}") from error

    def called_with(self, settings: Sequence[str]) -> Self:
        """Returns the preset with other arguments of the pipeline's call.

        Arguments:
            settings: Words like "height=768": numbers, true, false, lists and quoted text as in TOML,
                anything else is text.

        Raises:
            ValueError: One of them is not NAME=VALUE, or sets what adaptcache sets itself.
        """
        call = dict(self.call)
        for words in settings:
            name, equals, value = words.partition("=")
            if not (equals and name.isidentifier()):
                raise ValueError(f"--set takes NAME=VALUE, say height=768; got {words[:80]!r}")
            try:
                call[name] = tomllib.loads(f"value = {value}")["value"]
            except tomllib.TOMLDecodeError:
                call[name] = value
        return type(self).model_validate({**self.model_dump(), "call": self._leaves_ours(call)})

    @property
    def folder(self) -> Path | None:
        """The local folder with the weights; None where they come from the hub."""
        if self.checkpoint.startswith("demo/"):
            return calibration_folder() / self.checkpoint
        path = Path(self.checkpoint).expanduser()
        return None if _is_hub_id(self.checkpoint) and not path.is_dir() else path

    def load_pipeline(self, device: str | None = None, path: str | Path | None = None) -> "DiffusionPipeline":
        """Loads the pipeline onto a device.

        Arguments:
            device: Where to; by default cuda, mps or cpu, the first there is.
            path: A local folder with the weights, to be used instead of the checkpoint.

        Raises:
            CheckpointError: If the weights cannot be had or read.
        """
        return load_pipeline(self, device, path)


def names() -> list[str]:
    """Returns the names of the embedded presets."""
    return sorted(path.stem for path in calibration_folder().glob("models/*.toml"))


def resolve(model: str) -> Preset:
    """Finds the preset for a name, a preset file, a local folder or a hub id.

    A folder or hub id that a preset is about gives that preset; others get defaults.

    Raises:
        LookupError: If it is none of these.
    """
    if model in names() or model.endswith(".toml"):
        return Preset.load(model)
    path = Path(model).expanduser()
    for preset in map(Preset.load, names()):
        if model == preset.checkpoint or path.resolve() == preset.folder:
            return preset
    if not model or not (path.is_dir() or _is_hub_id(model)):
        raise LookupError(_no_such_model(model))

    import torch  # not above: listing the presets should not cost seconds

    dtype: Literal["bfloat16", "float32"] = "bfloat16" if torch.cuda.is_available() else "float32"
    return Preset(name=path.resolve().name, checkpoint=model, dtype=dtype)


def _is_hub_id(text: str) -> bool:
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", text) is not None


def _no_such_model(text: str) -> str:
    close = difflib.get_close_matches(text.lower(), names(), n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return (
        f"no model {text!r}.{hint} Give a folder with a diffusers pipeline, a hub id "
        f"(user/repo), or one of: {', '.join(names())}"
    )
