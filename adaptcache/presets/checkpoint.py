"""Loading a checkpoint, and saying in one line why that did not work."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from . import Preset

__all__ = ["CheckpointError", "load_pipeline"]

ELSEWHERE = "To use a copy of your own, point to its folder: --model /path/to/folder"


class CheckpointError(RuntimeError):
    """Weights that cannot be had; the message names the checkpoint and the cure."""


def load_pipeline(
    preset: "Preset", device: str | None = None, path: str | Path | None = None
) -> "DiffusionPipeline":
    """Loads the pipeline of a preset onto a device; see `Preset.load_pipeline`."""
    folder = Path(path).expanduser() if path else preset.folder
    if folder and not (folder / "model_index.json").is_file():
        raise CheckpointError(_no_folder(folder, preset))

    import diffusers
    import torch
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
    from safetensors import SafetensorError

    if (pipeline := getattr(diffusers, preset.pipeline, None)) is None:
        raise CheckpointError(
            f"diffusers {diffusers.__version__} has no {preset.pipeline}; "
            "correct the preset, or update diffusers: pip install -U diffusers"
        )
    device = device or _fastest_device()
    # CPUs compute float16 slowly, where they can at all.
    halved = device.startswith("cpu") and preset.dtype == "float16"
    dtype = torch.float32 if halved else getattr(torch, preset.dtype)
    # Up to 0.39 `dtype` is quietly ignored, from 0.40 on `torch_dtype` is deprecated.
    renamed = [int(part) for part in diffusers.__version__.split(".")[:2]] >= [0, 40]
    options: dict[str, Any] = {"dtype" if renamed else "torch_dtype": dtype}
    if preset.variant and (not folder or any(folder.glob(f"*/*.{preset.variant}.*"))):
        options["variant"] = preset.variant

    source = str(folder or preset.checkpoint)
    failures: tuple[type[Exception], ...] = (
        *(ImportError, OSError, ValueError, EntryNotFoundError, SafetensorError),
        *HfHubHTTPError.__bases__,  # a time-out while connecting is an HTTP library's own error
    )
    try:
        loaded = pipeline.from_pretrained(source, **options)
    except failures as error:
        raise CheckpointError(_why(error, source, preset)) from error
    return loaded.to(device)


def _fastest_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _no_folder(folder: Path, preset: "Preset") -> str:
    what = "has no model_index.json" if folder.is_dir() else "does not exist"
    if folder == preset.folder and preset.checkpoint.startswith("demo/"):
        return (
            f"the demo model's folder {folder} {what}; install adaptcache-diffusers again, "
            "or train it in a checkout: make demo-model, make video-model"
        )
    return f"{folder} {what}; give the folder that a diffusers pipeline was saved to"


def _why(error: Exception, source: str, preset: "Preset") -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if isinstance(error, ImportError):
        return (
            f"loading {source} needs another package: {reason} "
            "(text encoders: pip install 'adaptcache-diffusers[demo]')"
        )
    if Path(source).is_dir():
        return f"{source} cannot be loaded: {reason}"

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in _causes(error))

    access = "request access on its page of the hub and log in: hf auth login"
    if caused_by(GatedRepoError):
        return f"{source} is gated and you have no access; {access}. {ELSEWHERE}"
    if caused_by(RepositoryNotFoundError):
        return (
            f"the hub has no {source}, or it is private; check the name, "
            f"or log in: hf auth login. {ELSEWHERE}"
        )
    unreachable = (ConnectionError, LocalEntryNotFoundError, HfHubHTTPError.__bases__[0])
    if caused_by(*unreachable) and not caused_by(HfHubHTTPError):
        gated = f". It is gated: {access}" if preset.gated else ""
        return f"{source} is not on this machine and the hub cannot be reached{gated}. {ELSEWHERE}"
    return f"{source} cannot be loaded: {reason}. {ELSEWHERE}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    # Both links: diffusers raises an OSError from the one while handling the other.
    if error:
        yield error
        yield from _causes(error.__cause__)
        if error.__context__ is not error.__cause__:
            yield from _causes(error.__context__)
