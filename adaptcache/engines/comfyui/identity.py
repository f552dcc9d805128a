"""What a MODEL of ComfyUI is: everything that changes its output, for cache keys and fingerprints.

Weights are told by a sample of their values, as they are without patches; LoRA and other patches by their strengths
and a sample of their values, whether they are merged at the moment or not.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ...cache import feed
from .gate import KEY

SAMPLE = 64  # values read of each tensor

DIFFUSERS = {  # classes of ComfyUI's denoisers, and the classes of diffusers that have the same weights
    "AsymmDiTJoint": "MochiTransformer3DModel",
    "Chroma": "ChromaTransformer2DModel",
    "Flux": "FluxTransformer2DModel Flux2Transformer2DModel",
    "HiDreamImageTransformer2DModel": "HiDreamImageTransformer2DModel",
    "HunyuanVideo": "HunyuanVideoTransformer3DModel HunyuanVideo15Transformer3DModel HunyuanImageTransformer2DModel",
    "LTXAVModel": "LTX2VideoTransformer3DModel",
    "LTXVModel": "LTXVideoTransformer3DModel",
    "MMDiT": "AuraFlowTransformer2DModel",
    "NextDiT": "Lumina2Transformer2DModel ZImageTransformer2DModel",
    "OpenAISignatureMMDITWrapper": "SD3Transformer2DModel",
    "PixArtMS": "PixArtTransformer2DModel",
    "QwenImageTransformer2DModel": "QwenImageTransformer2DModel",
    "UNetModel": "UNet2DConditionModel",
    "WanModel": "WanTransformer3DModel",
}
SECOND = {"Flux": "global_modulation", "NextDiT": "z_image_modulation"}  # the setting that tells the second of two


def denoiser_class(model: Any) -> tuple[str, set[str]]:
    """Returns the class of a MODEL's denoiser, and the names that schedules may know it by: diffusers' too."""
    own, settings = type(model.model.diffusion_model).__name__, model.model.model_config.unet_config
    names = DIFFUSERS.get(own, "").split()
    if own in SECOND:
        names = [names[bool(settings.get(SECOND[own]))]]
    return own, {own, *names}


def few_values(tensor: Tensor) -> bytes:
    """Returns the bytes of a sample of a tensor's values."""
    flat = tensor.detach().flatten()
    few: Any = flat[:: max(1, flat.numel() // SAMPLE)][:SAMPLE]
    return bytes(few.to("cpu", torch.float32).contiguous().numpy().tobytes())


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yields the tensors of a patch: adapters keep theirs in `weights`."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors_in(one)
    elif (weights := getattr(value, "weights", None)) is not None:
        yield from tensors_in(weights)


def weights_hash(model: Any) -> str:
    """Returns a digest of the weights of a MODEL's denoiser and of its patches (LoRA)."""
    digest = hashlib.sha256()
    backup = getattr(model, "backup", {})
    for name, tensor in sorted(model.model.diffusion_model.state_dict().items()):
        key = f"diffusion_model.{name}"
        whole = backup[key].weight if key in backup else tensor  # patches may be merged at the moment
        if isinstance(whole, Tensor):
            digest.update(f"{name}{tuple(whole.shape)}".encode() + few_values(whole))
    for key, patches in sorted(model.patches.items(), key=lambda pair: str(pair[0])):
        for strength, patch, strength_model, *where in patches:
            kind = getattr(patch, "name", type(patch).__name__)
            feed(digest, [str(key), float(strength), float(strength_model), str(kind), str(where[:1])])
            for tensor in tensors_in(patch):
                digest.update(few_values(tensor))
    return digest.hexdigest()[:16]


def options_of(model: Any) -> list[Any]:
    """Returns what nodes have set on a MODEL: functions by their names, numbers as they are; ours aside."""
    options = {name: value for name, value in model.model_options.items() if name != "transformer_options"}
    options |= model.model_options.get("transformer_options", {})
    wrappers = {kind: sorted(str(key) for key in keys if key != KEY) for kind, keys in model.wrappers.items()}
    patched = {key: settings_of(value) for key, value in getattr(model, "object_patches", {}).items()}
    used = {kind: keys for kind, keys in sorted(wrappers.items()) if keys}
    return [plain(options, brief=True), used, plain(patched, brief=True)]


def settings_of(part: Any) -> Any:
    """Returns the class of a part and its plain settings: a patched `model_sampling` with its shift, say."""
    own = {key: value for key, value in vars(part).items() if isinstance(value, (bool, int, float, str))}
    return [type(part).__qualname__, own] if not callable(part) or own else named(part)


def named(value: Any) -> str:
    """Returns the name of a function or of a class of an object."""
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def plain(value: Any, brief: bool = False) -> Any:
    """Returns nested settings as `cache.feed` takes them: objects by the names of their classes.

    If `brief`, a sample of a tensor's values stands for them.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(one, brief) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one, brief) for one in value]
    if isinstance(value, Tensor) and brief:
        return [list(value.shape), hashlib.sha256(few_values(value)).hexdigest()]
    if value is None or isinstance(value, (bool, int, float, str, Tensor)):
        return value
    return named(value)


def state_of(model: Any) -> list[Any]:
    """Returns what differs whenever nodes have changed a MODEL. Reads nothing from the device."""
    return [str(getattr(model, "patches_uuid", "")), options_of(model)]


def fingerprint(model: Any) -> dict[str, Any]:
    """Returns what a schedule says of the MODEL that it was fitted on."""
    base, own = model.model, denoiser_class(model)[0]
    digest = hashlib.sha256()
    feed(digest, [own, plain(base.model_config.unet_config), settings_of(base.model_sampling)])
    feed(digest, options_of(model))
    return {
        "class": own,
        "config_hash": digest.hexdigest()[:16],
        "weights_hash": weights_hash(model),
        "patched": len(model.patches),
    }
