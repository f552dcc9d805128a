"""How a pipeline is called, classic or modular: what it takes, what of it runs, and what comes back.

A modular pipeline takes what its blocks take (`pipe.blocks.inputs`) and returns what it is asked for by name. A run
that is not decoded has no blocks behind the last one with a denoiser.
"""

import copy
import inspect
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import diffusers
import numpy as np
import torch

from ...errors import AttachError
from ...runs import SET_HERE, PipelineCall, Prompt, PromptSet, fork_rng
from .components import find_denoisers, is_modular

OUTPUTS = ("images", "videos", "frames", "audio", "audios", "sound")  # what decoding blocks return
LATENT = re.compile(r"""["']latent["']""")
NO_LATENT: set[type] = set()  # pipelines that name the word, and fail to return latents (QwenImageLayeredPipeline)


def parameters_of(pipe: Any) -> tuple[set[str], bool]:
    """Returns the names that a pipeline's call takes, and whether it takes any other name too.

    A subclass with `__call__(self, *args, **kwargs)` passes them on to its base, whose names count. One that names
    some of them itself may keep the others, so that it takes any.
    """
    if is_modular(pipe):
        return {one.name or one.kwargs_type for one in pipe.blocks.inputs}, False
    names: set[str] = set()
    any_other = False
    for found in signatures_of(type(pipe)):
        own = {one.name for one in found if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
        names |= own
        if not any(one.kind is one.VAR_KEYWORD for one in found):
            return names, any_other
        any_other |= bool(own)
    return names, True


def methods_of(kind: type) -> list[Any]:
    """Returns the `__call__` of a pipeline's class, and those of its base classes."""
    return [vars(base)["__call__"] for base in kind.__mro__ if "__call__" in vars(base)]


def signatures_of(kind: type) -> list[list[inspect.Parameter]]:
    """Returns what these take, but the pipeline itself."""
    return [list(inspect.signature(method).parameters.values())[1:] for method in methods_of(kind)]


def defaults_of(pipe: Any) -> dict[str, Any]:
    """Returns the defaults of a pipeline's call, those of its base classes too."""
    if is_modular(pipe):
        return {one.name: one.default for one in pipe.blocks.inputs if one.name}
    known = (one for found in reversed(signatures_of(type(pipe))) for one in found)
    return {one.name: one.default for one in known if one.default is not one.empty}


def named_inputs(pipe: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a call by name: of a modular pipeline, those in the state it is given too."""
    if not is_modular(pipe):
        return dict(arguments)
    names, values = parameters_of(pipe)[0], getattr(arguments.get("state"), "values", {})
    given = {name: value for name, value in arguments.items() if name not in ("state", "output")}
    return {name: value for name, value in values.items() if name in names} | given


def named_arguments(bound: inspect.BoundArguments) -> dict[str, Any]:
    """Returns the arguments of a call by name: those in `**kwargs`, and those in `*args` as base classes name them."""
    found: dict[str, Any] = {}
    for name, value in list(bound.arguments.items())[1:]:
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            found |= value
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            # As the first base class has it that has names for them.
            bases = signatures_of(type(bound.args[0]))
            named = (known for known in bases if all(one.kind is not one.VAR_POSITIONAL for one in known))
            found |= zip((one.name for one in next(named, ())), value, strict=False)
        else:
            found[name] = value
    return found


def check_arguments(pipe: Any, arguments: Mapping[str, Any]) -> None:
    """Raises where a pipeline does not take an argument."""
    names, any_other = parameters_of(pipe)
    if (unknown := sorted(set(arguments) - names)) and not any_other:
        known = ", ".join(sorted(names - SET_HERE))
        raise TypeError(f"{type(pipe).__name__} takes no {', '.join(unknown)}; it takes {known}")


def without_decoding(pipe: Any) -> Any:
    """Returns a modular pipeline that ends with its denoising: its blocks up to the last one with a denoiser."""
    denoisers, blocks = set(find_denoisers(pipe)), pipe.blocks
    if not isinstance(blocks, diffusers.SequentialPipelineBlocks):
        return pipe
    kept = list(blocks.sub_blocks.items())
    while kept and denoisers.isdisjoint(spec.name for spec in kept[-1][1].expected_components):
        kept.pop()
    other, shorter = copy.copy(pipe), copy.copy(blocks)
    shorter.sub_blocks = type(blocks.sub_blocks)(kept or blocks.sub_blocks)
    other._blocks = shorter
    return other


def takes_latent(pipe: Any) -> bool:
    """Whether a classic pipeline can return latents: whether its call, or that of a base class, names the word."""
    if type(pipe) in NO_LATENT:
        return False
    try:
        return any(LATENT.search(inspect.getsource(method)) for method in methods_of(type(pipe)))
    except (OSError, TypeError):  # no source: as nearly all do
        return True


def call_pipeline(pipe: Any, call: PipelineCall, prompts: PromptSet, output_type: str = "latent") -> list[Any]:
    """Runs a pipeline on one batch and returns all it returns: frames and audio, say.

    Arguments:
        prompts: The batch; its first number sets the noise.
        output_type: "latent" (not decoded, where it can be had), "np" or "pil".

    Raises:
        Exception: What the pipeline raises, with a note that says how it was called.
    """
    names, any_other = parameters_of(pipe)
    decoded = output_type != "latent"
    if not (decoded or is_modular(pipe) or takes_latent(pipe)):
        output_type = "np"
    seed, samples = call.seed + prompts.first, len(prompts)
    noise = [torch.Generator("cpu").manual_seed(seed + k) for k in range(samples)]
    own = {
        "num_inference_steps": call.num_inference_steps,
        "generator": noise if samples > 1 else noise[0],
        "output_type": output_type,
        "return_dict": False,
    }
    own = {name: value for name, value in own.items() if name in names or any_other}
    given = own | spread(call.pipe_kwargs, samples) | join_prompts(prompts)
    with fork_rng(), noting_call(pipe, call.pipe_kwargs):
        torch.manual_seed(seed)  # some schedulers take no generator
        if not is_modular(pipe):
            try:
                return list(pipe(**given))
            except UnboundLocalError:
                if output_type != "latent":
                    raise
                NO_LATENT.add(type(pipe))  # it does not know what to return: once more, decoded, from the same noise
                return call_pipeline(pipe, call, prompts, output_type)
        wanted = outputs_of(pipe) if decoded else ["latents"]
        # What decoding alone takes is not among the inputs of a pipeline that does not decode.
        found = pipe(**{name: value for name, value in given.items() if name in names}, output=wanted)
    return [as_array(found[name]) if decoded else found[name] for name in wanted]


@contextmanager
def noting_call(pipe: Any, pipe_kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Adds how a pipeline was called to the errors of others, which do not say what they are about."""
    try:
        yield
    except Exception as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if pipe_kwargs and not frame.f_globals.get("__name__", "").startswith("adaptcache."):
            given = ", ".join(f"{name}={value!r:.40}" for name, value in pipe_kwargs.items())
            error.add_note(f"{type(pipe).__name__} was called with {given}")
        raise


def outputs_of(pipe: Any) -> list[str]:
    """Returns the names of the decoded outputs of a modular pipeline; `AttachError` where no block decodes."""
    made = [one.name for one in pipe.blocks.intermediate_outputs]
    if found := [name for name in OUTPUTS if name in made]:
        return found  # what is seen comes first
    raise AttachError(
        f"the blocks of {type(pipe).__name__} return {', '.join(made)} and decode nothing: add a "
        "block that decodes, or do without what compares pictures (calibrate without eval_prompts)"
    )


def as_array(value: Any) -> Any:
    """Returns decoded outputs as arrays, images of PIL as values in [0, 1]."""
    if isinstance(value, torch.Tensor):
        return value.float().cpu().numpy()
    if isinstance(value, (list, tuple)) and value:
        return np.stack([as_array(one) for one in value])
    return np.asarray(value, dtype=np.float32) / 255 if hasattr(value, "getpixel") else value


def spread(arguments: Mapping[str, Any], samples: int) -> dict[str, Any]:
    """Returns the arguments for so many samples: not all pipelines repeat a negative prompt."""
    texts = {k: v for k, v in arguments.items() if k.startswith("negative_prompt") and isinstance(v, str)}
    return dict(arguments) | ({name: [text] * samples for name, text in texts.items()} if samples > 1 else {})


def join_prompts(prompts: PromptSet) -> dict[str, Any]:
    """Returns the arguments of a batch: texts as `prompt`, mappings merged key by key.

    Tensors and lists hold one sample each and are joined; anything else becomes an entry of a list.
    """
    rows: list[Prompt] = [{"prompt": p} if isinstance(p, str) else dict(p) for p in prompts]
    if len(rows) == 1:
        return dict(rows[0])  # type: ignore[arg-type]
    return {name: _joined(name, [row[name] for row in rows]) for name in rows[0]}  # type: ignore[index]


def _joined(name: str, values: list[Any]) -> Any:
    """Returns the values that samples have for one argument as that of a batch."""
    if all(isinstance(value, torch.Tensor) for value in values):
        shapes = {tuple(value.shape[1:]) for value in values}
        if len(shapes) > 1:
            raise ValueError(
                f"{name} has other shapes from prompt to prompt ({', '.join(map(str, sorted(shapes)))}), so these "
                "cannot be one batch: give batch_size=1, or pad them to one length"
            )
        return torch.cat(values)
    if all(isinstance(value, list) for value in values):
        return [entry for value in values for entry in value]
    return values
