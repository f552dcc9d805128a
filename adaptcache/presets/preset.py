"""Presets: how a known checkpoint is loaded and called, one TOML file each."""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..files import locate
from ..limits import PROMPTS, STEPS, check_name, check_plain, first_fault, read_bytes
from .prompts import calibration_folder

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

LARGEST = 16_384  # bytes; real presets have about 500
DOTS = 200  # in all: a key of a thousand parts takes a TOML parser quadratic time
INDEXES = ("model_index.json", "modular_model_index.json")  # of a classic pipeline, and of blocks
OURS = {"prompt", "num_inference_steps", "generator", "latents", "output_type"}
OFFLOAD = ("none", "model", "group")
ELSEWHERE = "To use a copy of your own, point to its folder: --model /path/to/folder"


class CheckpointError(RuntimeError):
    """Weights that cannot be loaded; the message names the checkpoint and the cure."""


class Preset(BaseModel):
    """How to load a pipeline and how to call it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    # the name of the TOML file, or the last part of the folder or hub id
    name: Annotated[str, AfterValidator(check_name)]
    about: str = ""  # one line for people
    # a hub id, a folder, or a folder below `calibration/` ("demo/emoji-flux-32")
    checkpoint: Annotated[str, Field(max_length=4096)]
    # a pipeline class of diffusers; "DiffusionPipeline" asks the checkpoint
    pipeline: Annotated[str, Field(pattern=r"^[A-Z]\w*$", max_length=200)] = "DiffusionPipeline"
    # What the weights are loaded in. CPUs get float32 instead of float16.
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    # the variant of the weight files, for instance "fp16"
    variant: Annotated[str, AfterValidator(check_name)] | None = None
    steps: int = Field(default=28, ge=1, le=STEPS)  # the number of scheduler steps
    prompts: Annotated[str, Field(max_length=4096)] = "general"  # a file in `calibration/prompts`, or a path
    gated: bool = False  # whether access to the checkpoint must be requested
    batch_size: int = Field(default=1, ge=1, le=PROMPTS)  # how many prompts one calibration run has: as many as fit
    call: dict[str, Any] = Field(default_factory=dict)  # further arguments of the pipeline's `__call__`

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
            LookupError: There is no such preset.
            ValueError: The file is not a preset.
        """
        embedded = calibration_folder() / "models" / f"{name_or_path}.toml"
        path = embedded if str(name_or_path) in names() else locate(name_or_path)
        if path.suffix != ".toml" or not path.is_file():
            raise LookupError(_no_such_model(str(name_or_path)))
        try:
            content = read_bytes(path, LARGEST)
            if content.count(b".") > DOTS:
                raise ValueError(f"it has more than {DOTS} dots")
            data = tomllib.loads(content.decode("utf-8-sig"))
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
        call, said = dict(self.call), dict[str, str]()
        for words in settings:
            name, equals, value = words.partition("=")
            if said.setdefault(name, words) != words:
                raise ValueError(f"--set says {said[name][:80]!r} and {words[:80]!r}: leave one out")
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
        path = locate(self.checkpoint)
        return None if _is_hub_id(self.checkpoint) and not path.is_dir() else path

    def load_pipeline(
        self,
        device: str | None = None,
        path: str | Path | None = None,
        *,
        offload: str = "none",
        loras: Sequence[str] = (),
    ) -> DiffusionPipeline:
        """Loads the pipeline onto a device.

        Arguments:
            device: Where to; by default the accelerator (cuda, mps, xpu, ...), or cpu where there is none.
            path: A local folder with the weights, to be used instead of the checkpoint.
            offload: Where weights wait: "none" on the device, "model" and "group" on the CPU.
            loras: Files, folders or hub ids, each perhaps with "@SCALE".

        Raises:
            CheckpointError: The weights cannot be had or read, or the device cannot be used.
        """
        if offload not in OFFLOAD:
            raise ValueError(f"--offload is one of {', '.join(OFFLOAD)}, got {offload!r}")
        for text in loras:
            read_lora(text)  # raises before the weights are read
        folder = locate(path) if path else self.folder
        if folder and not any((folder / name).is_file() for name in INDEXES):
            raise CheckpointError(_no_folder(folder, self))

        import diffusers
        import torch
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
        from safetensors import SafetensorError

        if (pipeline := getattr(diffusers, self.pipeline, None)) is None:
            raise CheckpointError(
                f"diffusers {diffusers.__version__} has no {self.pipeline}; "
                "correct the preset, or update diffusers: pip install -U diffusers"
            )
        device = _usable(device) if device else _accelerator() or "cpu"
        # CPUs compute float16 slowly, where they can at all.
        halved = device.startswith("cpu") and self.dtype == "float16"
        dtype = torch.float32 if halved else getattr(torch, self.dtype)
        # Up to 0.39 `dtype` is quietly ignored, from 0.40 on `torch_dtype` is deprecated.
        renamed = [int(part) for part in diffusers.__version__.split(".")[:2]] >= [0, 40]
        options: dict[str, Any] = {"dtype" if renamed else "torch_dtype": dtype}
        if self.variant and (not folder or any(folder.glob(f"*/*.{self.variant}.*"))):
            options["variant"] = self.variant

        source = str(folder or self.checkpoint)
        failures: tuple[type[Exception], ...] = (
            *(ImportError, OSError, ValueError, EntryNotFoundError, SafetensorError),
            *HfHubHTTPError.__bases__,  # a time-out while connecting is an HTTP library's own error
        )
        try:
            loaded = load(pipeline, source, options)
        except failures as error:
            raise CheckpointError(_why(error, source, self.gated)) from error
        add_loras(loaded, loras)
        return place(loaded, device, offload)


def load(kind: Any, source: str, options: dict[str, Any]) -> Any:
    """Loads a pipeline, a modular one where its class is, or where the source has the index of blocks only.

    Raises:
        OSError: Components of a modular pipeline could not be loaded.
    """
    import diffusers
    from huggingface_hub.errors import EntryNotFoundError

    classic, blocks = (Path(source) / name for name in INDEXES)
    modular = issubclass(kind, diffusers.ModularPipeline) or (blocks.is_file() and not classic.is_file())
    if not modular:
        try:
            return kind.from_pretrained(source, **options)
        except EntryNotFoundError:
            if kind is not diffusers.DiffusionPipeline:
                raise
    found = kind if issubclass(kind, diffusers.ModularPipeline) else diffusers.ModularPipeline
    pipe = found.from_pretrained(source)
    wanted = {
        name for name in pipe.pretrained_component_names if pipe.get_component_spec(name).pretrained_model_name_or_path
    }
    pipe.load_components(**options)
    if missing := sorted(wanted & set(pipe.null_component_names)):
        raise OSError(f"{', '.join(missing)} of {source} cannot be loaded (diffusers logged why)")
    return pipe


def names() -> list[str]:
    """Returns the names of the embedded presets."""
    return sorted(path.stem for path in calibration_folder().glob("models/*.toml"))


def resolve(model: str) -> Preset:
    """Finds the preset for a name, a preset file, a local folder or a hub id.

    A folder or hub id that a preset is about gives that preset; others get defaults.

    Raises:
        LookupError: It is none of these.
    """
    if model in names() or model.endswith(".toml"):
        return Preset.load(model)
    path = locate(model)
    for preset in map(Preset.load, names()):
        if model == preset.checkpoint or path.resolve() == preset.folder:
            return preset
    if not model or not (path.is_dir() or _is_hub_id(model)):
        raise LookupError(_no_such_model(model))
    dtype: Literal["bfloat16", "float32"] = "bfloat16" if _accelerator() in ("cuda", "xpu") else "float32"
    return Preset(name=path.resolve().name, checkpoint=model, dtype=dtype)


def _is_hub_id(text: str) -> bool:
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", text) is not None


def _no_such_model(text: str) -> str:
    close = difflib.get_close_matches(text.lower(), names(), n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return (
        f"no model {text!r}.{hint} Give a folder with a diffusers pipeline, a preset file "
        f"(.toml), a hub id (user/repo), or one of: {', '.join(names())}"
    )


def _accelerator() -> str | None:
    import torch  # not above: listing the presets should not cost seconds

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found.type if found else None


def _usable(device: str) -> str:
    """Returns a device, if something can be put there: before the weights are loaded."""
    import torch

    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # by what torch was built for
        reason = str(error).strip().splitlines()[0][:200]
        raise CheckpointError(
            f"no device {device!r} here ({reason}); without a device it runs on {_accelerator() or 'cpu'}"
        ) from error
    return device


def _no_folder(folder: Path, preset: Preset) -> str:
    what = "has no model_index.json" if folder.is_dir() else "does not exist"
    if folder == preset.folder and preset.checkpoint.startswith("demo/"):
        return (
            f"the demo model's folder {folder} {what}; install adaptcache-diffusers again, "
            "or train it in a checkout: make demo-model, make video-model"
        )
    return f"{folder} {what}; give the folder that a diffusers pipeline was saved to"


def _why(error: Exception, source: str, gated: bool) -> str:
    """Returns in one line why a checkpoint was not loaded, and what helps."""
    from ..hub import LOGIN, explain

    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if isinstance(error, ImportError):
        return (
            f"loading {source} needs another package: {reason} "
            "(text encoders: pip install 'adaptcache-diffusers[demo]')"
        )
    if Path(source).is_dir():
        return f"{source} cannot be loaded: {reason}"
    why = explain(error, source) or f"{source} cannot be loaded: {reason}"
    if gated and "cannot be reached" in why:
        why += f". It is gated: request access on its page of the hub and {LOGIN}"
    return f"{why}. {ELSEWHERE}"


def place(pipe: Any, device: str, offload: str) -> Any:
    """Puts a pipeline on a device, or lets its weights wait on the CPU.

    Offloading by "model" has one part at a time on the device, by "group" one layer at a time, which needs least.
    """
    if offload == "none":
        return pipe.to(device)
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
        return pipe
    import torch

    streams = torch.device(device).type in ("cuda", "xpu")
    pipe.enable_group_offload(onload_device=torch.device(device), offload_type="leaf_level", use_stream=streams)
    return pipe


def read_lora(text: str) -> tuple[str, float]:
    """Reads SOURCE or SOURCE@SCALE.

    Raises:
        ValueError: The scale is no finite number.
    """
    source, at, scale = text.rpartition("@")
    try:
        number = float(scale) if at else 1.0
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"--lora takes SOURCE or SOURCE@SCALE, say style.safetensors@0.8; got {text!r}")
    return source if at else text, number


def add_loras(pipe: Any, loras: Sequence[str]) -> None:
    """Loads LoRAs, and sets their scales.

    Raises:
        ValueError: The pipeline takes none, one cannot be read, or a scale is no number.
    """
    if not loras:
        return
    if not hasattr(pipe, "load_lora_weights"):
        raise ValueError(f"{type(pipe).__name__} takes no LoRA: leave --lora out")
    scales = {}
    for number, (source, scale) in enumerate(map(read_lora, loras)):
        scales[name := f"lora{number}"] = scale
        path, options = locate(source), {}
        if path.is_file():
            source, options = str(path.parent), {"weight_name": path.name}
        try:
            pipe.load_lora_weights(source, adapter_name=name, **options)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ValueError(f"the LoRA {source!r} cannot be loaded: {reason}") from error
    pipe.set_adapters(list(scales), list(scales.values()))


def compile_denoisers(pipe: Any) -> None:
    """Compiles the denoisers of a pipeline, by their repeated blocks where they have some: that takes least."""
    from ..engines.diffusers.components import denoisers_of

    denoisers: list[Any] = denoisers_of(pipe)
    for denoiser in denoisers:
        if getattr(denoiser, "_repeated_blocks", None):
            denoiser.compile_repeated_blocks()
        else:
            denoiser.compile()
