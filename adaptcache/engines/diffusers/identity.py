"""Which denoiser this is: digests of its configuration and of a sample of its weights."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...distributed import sharded
from ...errors import AttachError
from ...schedule.format import Denoiser
from .watch import denoisers_of

__all__ = ["checkpoint_of", "fingerprint", "provenance", "weights_hash"]

SAMPLE = 64  # values read of each tensor: enough to tell checkpoints and LoRAs apart, cheap for 12 B


def fingerprint(pipe: Any) -> Denoiser:
    """Describes the denoisers of a pipeline. Reads a few values of each weight from the device."""
    modules = [getattr(denoiser, "_orig_mod", denoiser) for denoiser in denoisers_of(pipe)]
    config = hashlib.sha256()
    for module in modules:
        if not isinstance(settings := getattr(module, "config", None), Mapping):
            raise AttachError(
                f"{type(module).__name__} has no config, so it is no denoiser of diffusers: "
                "unwrap it (.module), and wrap pipelines instead"
            )
        known = {key: value for key, value in settings.items() if not key.startswith("_")}
        config.update(json.dumps(known, sort_keys=True, default=str).encode())
    return Denoiser(
        class_name=_class_name(modules[0]),
        config_hash=config.hexdigest()[:16],
        weights_hash=weights_hash(modules),
        checkpoint=checkpoint_of(pipe),
    )


def _class_name(module: nn.Module) -> str:
    """Returns the name of a module's class, as it was before FSDP made a subclass of it."""
    kinds = type(module).__mro__
    own = [kind for kind in kinds if not any(base.__name__ == "FSDPModule" for base in kind.__mro__)]
    return own[0].__name__


def provenance(pipe: Any) -> dict[str, Any]:
    """Returns what besides the denoiser a schedule depends on, as JSON can hold it."""
    config = {k: _plain(v) for k, v in dict(pipe.scheduler.config).items() if not k.startswith("_")}
    loras = {name for part in denoisers_of(pipe) for name in getattr(part, "peft_config", None) or {}}
    return {
        "pipeline": type(pipe).__name__,
        "dtype": str(next(denoisers_of(pipe)[0].parameters()).dtype).removeprefix("torch."),
        "scheduler": config,
        "loras": sorted(loras),
    }


def checkpoint_of(pipe: Any) -> str:
    """Returns the hub id of a pipeline, or the name of its folder: paths mean nothing elsewhere."""
    known = str(getattr(pipe.config, "_name_or_path", "") or "")
    return Path(known).name if Path(known).is_dir() else known


def weights_hash(modules: Sequence[nn.Module]) -> str:
    """Returns a digest of the names, the shapes and some values of all weights."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            if sharded(tensor):  # to look at it, all processes would have to
                continue
            flat = tensor.detach().flatten()
            few = flat[:: max(1, flat.numel() // SAMPLE)][:SAMPLE]
            if not few.is_meta:  # offloaded: the values are elsewhere
                digest.update(few.to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:16]


def _plain(value: Any) -> Any:
    """Returns a setting as strict JSON can hold it: infinities and objects as text."""
    plain = (
        value is None
        or isinstance(value, (bool, int, str))
        or (isinstance(value, float) and math.isfinite(value))
    )
    return value if plain else str(value)[:200]
