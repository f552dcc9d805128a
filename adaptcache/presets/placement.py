"""Where the weights of a loaded pipeline are, which LoRAs are among them, and whether the denoiser is compiled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

OFFLOAD = ("none", "model", "group")


def check_offload(offload: str) -> None:
    """Raises where there is no such way."""
    if offload not in OFFLOAD:
        raise ValueError(f"--offload is one of {', '.join(OFFLOAD)}, got {offload!r}")


def place(pipe: Any, device: str, offload: str) -> Any:
    """Puts a pipeline on a device, or lets its weights wait on the CPU.

    Arguments:
        pipe: The pipeline, on the CPU.
        device: Where it computes.
        offload: "model" has one part at a time on the device; "group" one layer at a time, and needs least.
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
    for number, text in enumerate(loras):
        source, at, scale = text.rpartition("@")
        source, name = (source, f"lora{number}") if at else (text, f"lora{number}")
        try:
            scales[name] = float(scale) if at else 1.0
        except ValueError:
            raise ValueError(f"--lora takes SOURCE or SOURCE@SCALE, say style.safetensors@0.8; got {text!r}") from None
        path, options = Path(source).expanduser(), {}
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
