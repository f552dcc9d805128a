"""What a pipeline is: everything that changes its output, for cache keys, fingerprints and every attached run.

Configurations and weights of its modules, adapters with their scales, what patches them, its scheduler. Weights are
told by a sample of their values: enough to tell checkpoints and LoRAs apart, and cheap for 12 B parameters.
"""

import functools
import hashlib
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...cache import feed
from ...distributed import sharded
from ...errors import AttachError
from ...files import dump_json
from ...schedule.format import Denoiser
from .components import denoisers_of, find_guiders, find_schedulers, parts_of, plain_module

SAMPLE = 64  # values read of each tensor
SAMPLED = 32  # weights of a module that are read before each call
NOTES = ("architectures", "dtype", "torch_dtype", "transformers_version")  # what is written when a module is saved
ORIGINS = ("accelerate", "diffusers", "peft", "torch", "transformers")  # whose layers are not patched ones
HARMLESS = ("gradient_checkpointing", "name_or_path", "training", "use_slicing")  # but for dropout in training
FREE_U = ("b1", "b2", "s1", "s2")  # what it leaves on the blocks of a U-Net
SET = {"_diffusers_hook", "processor", "scaling", *FREE_U}  # attributes of layers that change what they compute


def components_of(pipe: Any, besides: Collection[str] = ()) -> dict[str, dict[str, str]]:
    """Returns digests of every module of a pipeline: its configuration, weights, and what was set on it or patches it.

    The one look at a module that cache keys, schedules and attached runs share. Strings only, so that a schedule keeps
    it. Weights that are offloaded or sharded cannot be read: they are "". Modules named in `besides` are left out.
    """
    found = {}
    for name, part in sorted(parts_of(pipe).items()):
        if name in besides or not isinstance(part, nn.Module):
            continue
        module = plain_module(part)
        weights, changes = [*module.parameters()], inspect_layers(walk(module))
        hidden = any(weight.is_meta or sharded(weight) for weight in weights)
        found[name] = {
            "class": class_name(module),
            "dtype": str(weights[0].dtype).removeprefix("torch.") if weights else "",
            "config": digest_of(config_of(module)),
            "weights": "" if hidden else weights_hash([module]),
            "settings": digest_of([own_settings(module) | changes.dropouts, changes.foreign]),
        }
    return found


def identity_of(pipe: Any) -> list[Any]:
    """Returns all that the outputs of a pipeline depend on, the call aside, as values that `cache.feed` takes."""
    modules = {name: part for name, part in parts_of(pipe).items() if isinstance(part, nn.Module)}
    layers = {name: walk(part) for name, part in sorted(modules.items())}
    changes = {name: inspect_layers(one) for name, one in layers.items()}
    patches = {name: [[*one.patches, *one.processors], hooks_of(layers[name])] for name, one in changes.items()}
    schedulers = {name: [type(one).__name__, config_of(one)] for name, one in find_schedulers(pipe).items()}
    others = {
        name: [type(part).__name__, plain(getattr(part, "name_or_path", None)), config_of(part)]
        for name, part in parts_of(pipe).items()
        if part is not None and name not in modules and name not in schedulers
    }
    own = [type(pipe).__name__, config_of(pipe), str(getattr(pipe, "dtype", ""))]
    return [torch.__version__, own, components_of(pipe), patches, schedulers, guiders_of(pipe), others]


def state_of(pipe: Any) -> tuple[Any, ...]:
    """Returns what differs whenever a pipeline may have changed. Waits for the device once.

    Replaced parts and tensors have other addresses, tensors that were written to another version; weights that were
    written to as `.data` (diffusers' EMA copies) have other values, a few of which are read. Compared only while the
    objects live, never kept.
    """
    found: list[Any] = [(type(one).__name__, dump_json(config_of(one))) for one in find_schedulers(pipe).values()]
    found += [dump_json(guiders_of(pipe)), dump_json(config_of(pipe))]
    values: dict[Any, list[Tensor]] = {}
    for name, part in parts_of(pipe).items():
        module = plain_module(part) if isinstance(part, nn.Module) else part
        found.append((name, id(module)))
        if not isinstance(module, nn.Module):
            continue
        layers = walk(module)
        found.append(json.dumps([config_of(module), own_settings(module), vars(inspect_layers(layers))], default=str))
        for _, layer in layers:
            for tensor in (*layer._parameters.values(), *layer._buffers.values()):
                if tensor is not None:
                    version = 0 if tensor.is_inference() else tensor._version
                    address = 0 if tensor.is_meta or sharded(tensor) else tensor.data_ptr()
                    found.append((id(tensor), version, address))
        weights = [one for _, layer in layers for one in layer._parameters.values() if type(one) is nn.Parameter]
        for weight in weights[:: len(weights) // SAMPLED + 1]:
            if not (weight.is_meta or sharded(weight) or 0 in weight.stride()):
                few = weight.detach().as_strided((min(4, weight.numel()),), (max(1, weight.numel() // 4),))
                few = few.view(torch.uint8) if few.itemsize == 1 else few
                values.setdefault((few.device, few.dtype), []).append(few)
    return *found, *(torch.cat(few).cpu().view(torch.uint8).numpy().tobytes() for few in values.values())


def digest_of(value: Any) -> str:
    """Returns a digest of a value by its content."""
    digest = hashlib.sha256()
    feed(digest, value)
    return digest.hexdigest()[:16]


def config_of(part: Any) -> dict[str, Any]:
    """Returns the configuration of a part, but for notes of diffusers' own, which begin with an underscore."""
    config = getattr(part, "config", None)
    if config is not None and not isinstance(config, Mapping):
        config = config.to_dict() if hasattr(config, "to_dict") else vars(config)
    return {str(k): plain(v) for k, v in (config or {}).items() if str(k)[0] != "_" and k not in NOTES}


@dataclass
class LayerChanges:
    """What changes the outputs of a module beside its weights and configuration, layer by layer."""

    # which adapters are active (LoRA and the like), how strong, whether off, and which are merged
    adapters: list[list[Any]] = field(default_factory=list)
    # FreeU, scales of IP-Adapters, attention processors that are not diffusers' own
    patches: list[list[Any]] = field(default_factory=list)
    processors: list[list[Any]] = field(default_factory=list)  # the classes of all, and hooks of diffusers
    dropouts: dict[str, float] = field(default_factory=dict)  # that are live
    foreign: list[list[str]] = field(default_factory=list)  # of classes of another library: merged tokens, say


def inspect_layers(layers: Iterable[tuple[str, Any]]) -> LayerChanges:
    """Returns what was set on the layers of a module after it was loaded, and what patches them."""
    found = LayerChanges()
    for name, layer in layers:
        own, kind = vars(layer), layer.__class__
        if own.keys().isdisjoint(SET) and SET.isdisjoint(layer._modules) and is_ordinary(kind):
            continue
        if isinstance(scaling := getattr(layer, "scaling", None), Mapping) and hasattr(layer, "active_adapters"):
            active = list(layer.active_adapters)
            scales = {adapter: float(scaling[adapter]) for adapter in active if adapter in scaling}
            found.adapters.append([name, active, scales, bool(layer.disable_adapters), list(layer.merged_adapters)])
        if patched := {key: own[key] for key in FREE_U if isinstance(own.get(key), (int, float))}:
            found.patches.append([name, patched])
        if (processor := getattr(layer, "processor", None)) is not None:  # a module itself in IP-Adapters
            by = type(processor)
            if (scale := getattr(processor, "scale", None)) is not None:
                found.patches.append([name, plain(scale)])
            if not by.__module__.startswith("diffusers."):
                settings = {key: plain(value) for key, value in vars(processor).items() if is_setting(value)}
                found.patches.append([name, f"{by.__module__}.{by.__qualname__}", settings])
            found.processors.append([name, by.__qualname__])
        if hooks := getattr(own.get("_diffusers_hook"), "hooks", None):
            found.processors.append([name, sorted(hooks)])
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.training and layer.p:
            found.dropouts[f"dropout {name}"] = layer.p
        if kind.__module__.partition(".")[0] not in ORIGINS:
            found.foreign.append([name, kind.__qualname__])
    return found


@functools.cache
def is_ordinary(kind: type) -> bool:
    """Whether a layer of a class changes nothing as long as nothing is set on it."""
    known = kind.__module__.partition(".")[0] in ORIGINS and not issubclass(kind, nn.modules.dropout._DropoutNd)
    return known and not any(hasattr(kind, name) for name in SET)


def walk(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Returns what `named_modules()` yields, which is slow for the thousands of layers that are looked at each run."""
    found: dict[int, tuple[str, nn.Module]] = {}
    waiting = [("", module)]
    while waiting:
        name, layer = waiting.pop()
        if id(layer) not in found:
            found[id(layer)] = name, layer
            before = f"{name}." if name else ""
            waiting += [(before + key, one) for key, one in reversed(layer._modules.items()) if one is not None]
    return list(found.values())


def hooks_of(layers: Iterable[tuple[str, nn.Module]]) -> list[Any]:
    """Returns the hooks on layers, which may steer outputs. For cache keys alone: in a run most of them only look."""
    found: list[Any] = []
    for name, layer in layers:
        for hook in (*layer._forward_pre_hooks.values(), *layer._forward_hooks.values()):
            code = getattr(getattr(hook, "__code__", None), "co_code", b"")
            found.append([name, getattr(hook, "__qualname__", type(hook).__qualname__), code])
    return found


def own_settings(module: nn.Module) -> dict[str, Any]:
    """Returns the plain settings that a module itself has as attributes: tiling of a VAE, say."""
    own = {name: value for name, value in vars(module).items() if value and is_setting(value)}
    return {name: plain(value) for name, value in own.items() if name[0] != "_" and name not in HARMLESS}


def fingerprint(pipe: Any) -> Denoiser:
    """Describes the denoisers of a pipeline. Reads a few values of each weight from the device."""
    modules = [plain_module(denoiser) for denoiser in denoisers_of(pipe)]
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
        class_name=class_name(modules[0]),
        config_hash=config.hexdigest()[:16],
        weights_hash=weights_hash(modules),
        checkpoint=checkpoint_of(pipe),
    )


def class_name(module: Any) -> str:
    """Returns the name of a module's class, as it was before FSDP made a subclass of it."""
    kinds = type(plain_module(module)).__mro__
    own = [kind for kind in kinds if not any(base.__name__ == "FSDPModule" for base in kind.__mro__)]
    return own[0].__name__


def provenance(pipe: Any) -> dict[str, Any]:
    """Returns what besides the denoiser a schedule depends on, as JSON can hold it."""
    loras = {name for part in denoisers_of(pipe) for name in getattr(part, "peft_config", None) or {}}
    scheduler = next(iter(find_schedulers(pipe).values()))
    return {
        "pipeline": type(pipe).__name__,
        "config": settings_of(pipe),
        "dtype": str(next(denoisers_of(pipe)[0].parameters()).dtype).removeprefix("torch."),
        "scheduler": config_of(scheduler),
        "loras": sorted(loras),
        "guiders": guiders_of(pipe),
    }


def settings_of(pipe: Any) -> dict[str, Any]:
    """Returns the numbers and switches of the configuration of a pipeline: at which time its experts change, say."""
    config = config_of(pipe).items()
    return {k: v for k, v in config if (v is None or isinstance(v, (int, float))) and "safety" not in k}


def guiders_of(pipe: Any) -> dict[str, Any]:
    """Returns class, settings and effective scale of what mixes the branches of a pipeline, by name."""
    found = {}
    for name, guider in find_guiders(pipe).items():
        settings = {key: plain(value) for key, value in config_of(guider).items() if key != "enabled"}
        scale, shift = getattr(guider, "guidance_scale", 1.0), bool(settings.get("use_original_formulation"))
        on = bool(getattr(guider, "_enabled", True))
        known = {"class": type(guider).__name__, "enabled": on, **settings}
        if isinstance(scale, (int, float)):  # set after the guider was made, it is not in its settings
            known["scale"] = float(scale + shift) if on else 1.0
        found[name] = {"scale": 1.0, **known}
    return found


def checkpoint_of(pipe: Any) -> str:
    """Returns the hub id of a pipeline, or the name of its folder: paths mean nothing elsewhere."""
    known = getattr(getattr(pipe, "config", None), "_name_or_path", "")
    known = str(known or getattr(pipe, "_pretrained_model_name_or_path", "") or "")
    return Path(known).name if Path(known).is_dir() else known


def weights_hash(modules: Sequence[nn.Module]) -> str:
    """Returns a digest of the names, the shapes and some values of all weights, and of the state of adapters."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            if not isinstance(tensor, Tensor):
                continue
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            if sharded(tensor):  # to look at it, all processes would have to
                continue
            flat = tensor.detach().flatten()
            few = flat[:: max(1, flat.numel() // SAMPLE)][:SAMPLE]
            if not few.is_meta:  # offloaded: the values are elsewhere
                digest.update(few.to("cpu", torch.float32).numpy().tobytes())
        changes = inspect_layers(walk(module))
        if adapters := [*changes.adapters, *changes.patches]:
            feed(digest, adapters)
    return digest.hexdigest()[:16]


def plain(value: Any) -> Any:
    """Returns a setting as strict JSON can hold it: infinities and objects as text."""
    if isinstance(value, Tensor) and value.numel() <= SAMPLE:
        value = value.tolist()
    if isinstance(value, tuple):  # what was saved and loaded has lists
        value = list(value)
    kept = value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))
    if kept:
        return value
    text = re.sub(r" at 0x[0-9a-f]+", "", str(value))  # addresses differ from process to process
    return text if len(text) <= 200 else f"{text[:180]}... {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def is_setting(value: Any) -> bool:
    """Whether an attribute is a plain setting, and not a tensor, a module or what a run left."""
    if isinstance(value, (list, tuple)):
        return all(map(is_setting, value))
    return value is None or isinstance(value, (bool, int, float, str))
