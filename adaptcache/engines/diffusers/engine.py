"""Runs pipelines of diffusers: one batch, watched by a hook."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import diffusers
import numpy as np
import torch
from torch import nn

from ... import __version__
from ...errors import AttachError
from ...hooks import StepHook
from ...runs import SET_HERE, Job, Outcome, PipelineCall, Prompt, PromptSet, fork_rng
from ...schedule.findings import Finding
from ...schedule.schedule import Schedule
from .compatibility import check_schedule, other_cache
from .components import denoisers_of, find_schedulers
from .finer import refined
from .gate import Gate
from .identity import fingerprint, identity_of, provenance

__all__ = ["DiffusersEngine", "sampling_rate", "twin"]


class DiffusersEngine:
    """Runs a pipeline of diffusers.

    Arguments:
        pipe: The pipeline. It is not changed: each run has a twin of it that shares all weights.
        exclusive: Run the pipeline itself, so that what other libraries hooked into it stays.
    """

    def __init__(self, pipe: Any, *, exclusive: bool = False) -> None:
        self.pipe, self.exclusive = pipe, exclusive

    def run(self, hook: StepHook, job: Job) -> Outcome:
        pipe = self.pipe if self.exclusive else twin(self.pipe)
        if job.refine > 1:
            pipe.scheduler = refined(pipe.scheduler, job.refine)
        gate = Gate(pipe, hook).open()
        with closing(gate), hook.install(gate):
            made = call_pipeline(pipe, job.call, job.prompts, "np" if job.decode else "latent")
        calls = tuple(tuple(branches) for loop in gate.done for branches in loop.calls)
        return Outcome(list(np.asarray(made[0])) if job.decode else [], calls)

    def takes(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Returns those arguments that the pipeline's call names; what `**kwargs` takes may be misspelt."""
        names = parameters_of(self.pipe)[0]
        return {name: value for name, value in arguments.items() if name in names}

    def identity(self, call: PipelineCall) -> Any:
        return [identity_of(self.pipe), call.num_inference_steps, call.pipe_kwargs, call.seed]

    def describe(self, call: PipelineCall) -> tuple[dict[str, Any], str, str, dict[str, Any]]:
        made = {
            "adaptcache": __version__, "diffusers": diffusers.__version__, "torch": torch.__version__,
            **provenance(self.pipe), "steps": call.num_inference_steps, "seed": call.seed,
            "call": {name: described(value) for name, value in call.pipe_kwargs.items()},
        }  # fmt: skip
        scheduler = type(next(iter(find_schedulers(self.pipe).values()))).__name__
        return fingerprint(self.pipe).model_dump(), scheduler, type(self.pipe).__name__, made

    def check(self, schedule: Schedule, strict: bool = False) -> list[Finding]:
        return check_schedule(schedule, self.pipe, strict)

    def preflight(self, call: PipelineCall, prompts: PromptSet) -> None:
        """Raises what would come up after work.

        Raises:
            AttachError: The pipeline cannot be watched.
            TypeError: It takes no such arguments.
            ValueError: A cache of another library is on.
        """
        denoisers_of(self.pipe)
        own = prompts[0] if len(prompts) else {}
        check_arguments(self.pipe, {**call.pipe_kwargs, **({} if isinstance(own, str) else own)})
        if name := other_cache(self.pipe):
            raise ValueError(
                f"{name} is on in this pipeline: its full runs would not be full; turn it off "
                "(pipe.transformer.disable_cache()), then calibrate"
            )


def twin(pipe: Any) -> Any:
    """Returns a pipeline that shares all weights but has its own schedulers, hooks and progress bar."""
    other = copy.copy(pipe)
    for name, scheduler in find_schedulers(pipe).items():
        setattr(other, name, copy.deepcopy(scheduler))
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            shared = copy.copy(part)  # the same parameters; its own place for a gate
            if compiled := vars(part).get("_compiled_call_impl"):
                vars(shared)["_compiled_call_impl"] = compiled
            setattr(other, name, shared)
    if hooks := getattr(pipe, "_all_hooks", None):  # accelerate's: they belong to the pipeline's own modules
        other.maybe_free_model_hooks = lambda: [hook.offload() for hook in hooks]
    other.set_progress_bar_config(disable=True)
    return other


def parameters_of(pipe: Any) -> tuple[set[str], bool]:
    """Returns the names that a pipeline's call takes, and whether it takes any other name too.

    A subclass with `__call__(self, *args, **kwargs)` passes them on to its base, whose names count. One that names
    some of them itself may keep the others, so that it takes any.
    """
    names: set[str] = set()
    any_other = False
    for kind in type(pipe).__mro__:
        method = vars(kind).get("__call__")
        if method is None:
            continue
        found = inspect.signature(method).parameters.values()
        own = {one.name for one in found if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)} - {"self"}
        names |= own
        if not any(one.kind is one.VAR_KEYWORD for one in found):
            return names, any_other
        any_other |= bool(own)
    return names, True


def check_arguments(pipe: Any, arguments: Mapping[str, Any]) -> None:
    """Raises where a pipeline does not take an argument."""
    if isinstance(pipe, modular_kind()):
        raise AttachError(
            f"{type(pipe).__name__} is a modular pipeline, which calibration does not run yet: calibrate on the "
            "classic pipeline of the same model, and attach that schedule to this one"
        )
    names, any_other = parameters_of(pipe)
    if (unknown := sorted(set(arguments) - names)) and not any_other:
        known = ", ".join(sorted(names - SET_HERE))
        raise TypeError(f"{type(pipe).__name__} takes no {', '.join(unknown)}; it takes {known}")


def modular_kind() -> Any:
    """Returns the class of modular pipelines; an empty tuple where diffusers has none."""
    return getattr(diffusers, "ModularPipeline", ())


def call_pipeline(pipe: Any, call: PipelineCall, prompts: PromptSet, output_type: str = "latent") -> Sequence[Any]:
    """Runs a pipeline on one batch and returns all it returns: frames and audio, say.

    Arguments:
        pipe: A pipeline of diffusers.
        call: How it is called.
        prompts: The batch; its first number sets the noise.
        output_type: "latent" (not decoded), "np" or "pil".
    """
    check_arguments(pipe, call.pipe_kwargs)
    names, any_other = parameters_of(pipe)
    seed, samples = call.seed + prompts.first, len(prompts)
    noise = [torch.Generator("cpu").manual_seed(seed + k) for k in range(samples)]
    own = {
        "num_inference_steps": call.num_inference_steps,
        "generator": noise if samples > 1 else noise[0],
        "output_type": output_type,
        "return_dict": False,
    }
    own = {name: value for name, value in own.items() if name in names or any_other}
    with fork_rng():
        torch.manual_seed(seed)  # some schedulers take no generator
        result: Sequence[Any] = pipe(**own | spread(call.pipe_kwargs, samples) | join_prompts(prompts))
    return result


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


def described(value: Any) -> Any:
    """Returns a value as JSON can hold it, for the provenance of a schedule."""
    try:
        json.dumps(value)
    except TypeError:
        return str(value)[:200]
    return value


def sampling_rate(pipe: Any) -> int | None:
    """Returns how many samples a second a pipeline makes; None where it makes no sound."""
    configs = [getattr(part, "config", None) for part in pipe.components.values()]
    rates = [getattr(config, "sampling_rate", None) for config in configs]
    return next((int(rate) for rate in rates if rate), None)
