"""What the parts of a pipeline are: denoisers, ControlNets, schedulers, found by what they do and not by name."""

import functools
import inspect
from typing import Any

from torch import Tensor, nn

from ...errors import AttachError

FIRST = ("transformer", "transformer_2", "unet")  # what most pipelines call theirs: they come first, in this order
TIMES = {
    "timestep", "timesteps", "timestep_ratio", "t", "time", "sigma", "sigmas", "noise_level", "noise_labels",
}  # fmt: skip
HOMES = ("diffusers.models.transformers", "diffusers.models.unets")


def parts_of(pipe: Any) -> dict[str, Any]:
    """Returns the components of a pipeline by name, and its other attributes; `AttachError` for what is none."""
    alone = isinstance(pipe, nn.Module) and not hasattr(pipe, "components")
    if isinstance(pipe, type) or alone or not hasattr(pipe, "__dict__"):
        got = f"the class {pipe.__name__}" if isinstance(pipe, type) else type(pipe).__name__
        raise AttachError(
            f"adaptcache works on pipelines of diffusers, got {got}: load one (from_pretrained), or "
            "take adaptcache.hook(transformer, schedule) for a denoiser alone"
        )
    found = dict(getattr(pipe, "components", None) or {})
    for name, value in vars(pipe).items():
        if not name.startswith("_") and (isinstance(value, nn.Module) or is_scheduler(value)):
            found.setdefault(name, value)
    return {name: getattr(pipe, name, part) for name, part in found.items()}


def is_scheduler(part: Any) -> bool:
    """Whether a part steps latents through a grid of timesteps."""
    kind = type(part)
    return not isinstance(part, nn.Module) and all(
        callable(getattr(kind, name, None)) for name in ("set_timesteps", "step")
    )


def is_pipeline(part: Any) -> bool:
    """Whether a part is itself a pipeline."""
    kinds = ("DiffusionPipeline", "ModularPipeline")
    return hasattr(part, "components") and any(kind.__name__ in kinds for kind in type(part).__mro__)


def is_modular(pipe: Any) -> bool:
    """Whether a pipeline is one of blocks."""
    return any(kind.__name__ == "ModularPipeline" for kind in type(pipe).__mro__)


def is_controlnet(module: nn.Module) -> bool:
    """Whether a module only serves a denoiser at the same step, and is skipped with it."""
    return "ControlNet" in type(plain_module(module)).__name__ and not _is_home(module)


def is_denoiser(module: nn.Module) -> bool:
    """Whether a module is called with latents and a time."""
    kind: Any = type(plain_module(module))
    return _is_home(module) or (not is_controlnet(module) and _takes_time(kind))


@functools.cache
def _takes_time(kind: Any) -> bool:
    return bool(TIMES & set(inspect.signature(kind.forward).parameters))


def _is_home(module: nn.Module) -> bool:
    return any(kind.__module__.startswith(HOMES) for kind in type(plain_module(module)).__mro__)


def plain_module(module: nn.Module) -> nn.Module:
    """Returns the module that `torch.compile` was given."""
    inner: nn.Module = getattr(module, "_orig_mod", module)
    return inner


def find_denoisers(pipe: Any) -> dict[str, nn.Module]:
    """Returns the denoisers of a pipeline by name; several where experts or branches have their own."""
    parts = {name: part for name, part in parts_of(pipe).items() if isinstance(part, nn.Module)}
    named = {name: part for name in FIRST if isinstance(part := getattr(pipe, name, None), nn.Module)}
    return named | {name: part for name, part in parts.items() if name not in named and is_denoiser(part)}


def find_controlnets(pipe: Any) -> dict[str, nn.Module]:
    """Returns the modules that only serve a denoiser."""
    parts = parts_of(pipe)
    return {
        name: part
        for name, part in parts.items()
        if isinstance(part, nn.Module) and (name == "controlnet" or is_controlnet(part))
    }


def find_schedulers(pipe: Any) -> dict[str, Any]:
    """Returns the schedulers of a pipeline by name, its main one first."""
    found = {name: part for name, part in parts_of(pipe).items() if is_scheduler(part)}
    main = {"scheduler": pipe.scheduler} if getattr(pipe, "scheduler", None) is not None else {}
    return main | found


def find_guiders(pipe: Any) -> dict[str, Any]:
    """Returns the parts that make a guided output of those of the branches, by name."""
    parts = parts_of(pipe).items()
    return {name: part for name, part in parts if any(kind.__name__ == "BaseGuidance" for kind in type(part).__mro__)}


def find_remembering(pipe: Any) -> list[str]:
    """Returns the classes of the guiders that hold tensors of earlier steps, as momentum does."""

    def holds(value: Any) -> bool:
        return not isinstance(value, (nn.Module, Tensor)) and any(
            isinstance(one, Tensor) for one in getattr(value, "__dict__", {}).values()
        )

    guiders = find_guiders(pipe).values()
    return sorted({type(one).__name__ for one in guiders if any(map(holds, vars(one).values()))})


def denoisers_of(pipe: Any) -> list[nn.Module]:
    """Returns the denoisers of a pipeline that can be watched.

    Raises:
        AttachError: It has none, no scheduler, or a scheduler that cannot be handed a forecast.
    """
    found, schedulers = list(find_denoisers(pipe).values()), find_schedulers(pipe)
    if inner := [name for name, part in vars(pipe).items() if is_pipeline(part)]:
        parts = " or ".join(f"pipe.{name}" for name in inner)
        raise AttachError(
            f"{type(pipe).__name__} runs other pipelines, each with a loop of its own: use {parts}, a schedule for "
            "each that is to be faster; calls of the whole run by them too"
        )
    if not found or not schedulers:
        what = "no scheduler" if found else f"no denoiser (none of {', '.join(FIRST)}, nothing called with a time)"
        raise AttachError(
            f"{type(pipe).__name__} has {what}: "
            "adaptcache works on pipelines that call a denoiser once or more for each scheduler step"
        )
    for scheduler in schedulers.values():
        kind: Any = type(scheduler)
        takes = inspect.signature(kind.step).parameters
        if missing := [name for name in ("model_output", "timestep", "sample") if name not in takes]:
            raise AttachError(
                f"{kind.__name__}.step takes no {', '.join(missing)}: adaptcache cannot hand it a forecast"
            )
    return found
