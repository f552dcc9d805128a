"""Which denoiser this is: digests of its configuration and of a sample of its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .schedule import Denoiser
from .watch import denoisers_of

__all__ = ["fingerprint", "weights_hash"]

SAMPLE = 64  # values read of each tensor: enough to tell checkpoints and LoRAs apart, cheap for 12 B


def fingerprint(pipe: Any) -> Denoiser:
    """Describes the denoisers of a pipeline. Reads a few values of each weight from the device."""
    modules = [getattr(denoiser, "_orig_mod", denoiser) for denoiser in denoisers_of(pipe)]
    config = hashlib.sha256()
    for module in modules:
        settings: Mapping[str, Any] = module.config  # type: ignore[assignment]
        known = {key: value for key, value in settings.items() if not key.startswith("_")}
        config.update(json.dumps(known, sort_keys=True, default=str).encode())
    return Denoiser(
        class_name=type(modules[0]).__name__,
        config_hash=config.hexdigest()[:16],
        weights_hash=weights_hash(modules),
        checkpoint=str(getattr(pipe.config, "_name_or_path", "") or ""),
    )


def weights_hash(modules: Sequence[nn.Module]) -> str:
    """Returns a digest of the names, the shapes and some values of all weights."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            flat = tensor.detach().flatten()
            few = flat[:: max(1, flat.numel() // SAMPLE)][:SAMPLE]
            if not few.is_meta:  # offloaded: the values are elsewhere
                digest.update(few.to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:16]
