"""Which denoiser this is: digests of its configuration and of a sample of its weights."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from .schedule import Denoiser
from .watch import denoisers_of

__all__ = ["fingerprint"]

SAMPLE = 64  # values read of each tensor: enough to tell checkpoints and LoRAs apart, cheap for 12 B


def fingerprint(pipe: Any) -> Denoiser:
    """Describes the denoisers of a pipeline. Reads a few values of each weight from the device."""
    config, weights = hashlib.sha256(), hashlib.sha256()
    modules = [getattr(denoiser, "_orig_mod", denoiser) for denoiser in denoisers_of(pipe)]
    for module in modules:
        known = {k: v for k, v in dict(module.config).items() if not k.startswith("_")}
        config.update(json.dumps(known, sort_keys=True, default=str).encode())
        for name, tensor in sorted(module.state_dict().items()):
            flat = tensor.detach().flatten()
            few = flat[:: max(1, flat.numel() // SAMPLE)][:SAMPLE]
            weights.update(f"{name}{tuple(tensor.shape)}".encode())
            if not few.is_meta:  # offloaded: the values are elsewhere
                weights.update(few.to("cpu", torch.float32).numpy().tobytes())
    return Denoiser(
        class_name=type(modules[0]).__name__,
        config_hash=config.hexdigest()[:16],
        weights_hash=weights.hexdigest()[:16],
        checkpoint=str(getattr(pipe.config, "_name_or_path", "") or ""),
    )
