"""Runs pipelines of diffusers: one batch, watched by a hook."""

import copy
import json
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import diffusers
import numpy as np
import torch
from torch import nn

from ... import __version__
from ...hooks import StepHook
from ...runs import Job, Outcome, PipelineCall, PromptSet
from ...schedule.findings import Finding
from ...schedule.schedule import Schedule
from .affine import read_run
from .calls import call_pipeline, check_arguments, parameters_of, without_decoding
from .compatibility import check_schedule, other_cache
from .components import denoisers_of, find_guiders, find_schedulers, is_modular
from .gate import Gate, LoopDone
from .identity import components_of, fingerprint, identity_of, provenance
from .sampler import refined


class DiffusersEngine:
    """Runs a pipeline of diffusers.

    Arguments:
        pipe: The pipeline. It is not changed: each run has a twin of it that shares all weights.
        exclusive: Run the pipeline itself, so that what other libraries hooked into it stays.
    """

    def __init__(self, pipe: Any, *, exclusive: bool = False) -> None:
        self.pipe, self.exclusive = pipe, exclusive
        self.several_loops = False  # whether a call was seen to run several

    read_run = staticmethod(read_run)

    def run(self, hook: StepHook, job: Job) -> Outcome:
        check_arguments(self.pipe, job.call.pipe_kwargs)
        pipe = self.pipe if self.exclusive else twin(self.pipe)
        if is_modular(pipe) and not (job.decode or self.exclusive):
            pipe = without_decoding(pipe)
        if job.refine > 1:
            pipe.scheduler = refined(pipe.scheduler, job.refine)
        gate = Gate(pipe, hook).open()
        with closing(gate), hook.install(gate):
            made = self._call(pipe, job)
        self.several_loops |= len(gate.done) > 1
        calls = tuple(tuple(made for _, made in branches) for loop in gate.done for branches in loop)
        return Outcome(list(np.asarray(made[0])) if job.decode else [], calls, len(gate.done))

    def _call(self, pipe: Any, job: Job) -> list[Any]:
        """Calls a pipeline; ends the call where the hook follows one loop, and another one begins."""
        try:
            return call_pipeline(pipe, job.call, job.prompts, "np" if job.decode else "latent")
        except LoopDone:
            self.several_loops = True
            if hasattr(pipe, "maybe_free_model_hooks"):
                pipe.maybe_free_model_hooks()  # as the call does at its end
            return []

    def takes(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Returns those arguments that the pipeline's call names; what `**kwargs` takes may be misspelt."""
        names = parameters_of(self.pipe)[0]
        return {name: value for name, value in arguments.items() if name in names}

    def identity(self, call: PipelineCall) -> Any:
        return [identity_of(self.pipe), call.num_inference_steps, call.pipe_kwargs, call.seed]

    def describe(self, call: PipelineCall) -> tuple[dict[str, Any], str, str, dict[str, Any]]:
        made = {
            "adaptcache": __version__, "diffusers": diffusers.__version__, "torch": torch.__version__,
            **provenance(self.pipe), "components": components_of(self.pipe),
            "steps": call.num_inference_steps, "seed": call.seed,
            "call": {name: described(value) for name, value in call.pipe_kwargs.items()},
        }  # fmt: skip
        made |= {"several_loops": True} if self.several_loops else {}
        scheduler = type(next(iter(find_schedulers(self.pipe).values()))).__name__
        return fingerprint(self.pipe).model_dump(), scheduler, type(self.pipe).__name__, made

    def check(self, schedule: Schedule, strict: bool = False) -> list[Finding]:
        return check_schedule(schedule, self.pipe, strict)

    def preflight(self, call: PipelineCall, prompts: PromptSet) -> None:
        """Raises at once for pipelines that cannot be watched, unknown arguments, and caches of other libraries."""
        denoisers_of(self.pipe)
        own = prompts[0] if len(prompts) else {}
        own = {} if isinstance(own, str) else own
        if twice := sorted(own.keys() & call.pipe_kwargs.keys()):
            raise TypeError(f"{', '.join(twice)} is given by the prompts and for all of them: give it once")
        check_arguments(self.pipe, {**call.pipe_kwargs, **own})
        if name := other_cache(self.pipe):
            raise ValueError(
                f"{name} is on in this pipeline: its full runs would not be full; turn it off "
                "(close() of a hook, pipe.transformer.disable_cache()), then calibrate"
            )


def twin(pipe: Any) -> Any:
    """Returns a pipeline that shares all weights but has its own schedulers, hooks and progress bar."""
    other = copy.copy(pipe)
    for name, part in (find_schedulers(pipe) | find_guiders(pipe)).items():
        setattr(other, name, copy.deepcopy(part))
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            shared = copy.copy(part)  # the same parameters; its own place for a gate
            if compiled := vars(part).get("_compiled_call_impl"):
                vars(shared)["_compiled_call_impl"] = compiled
            setattr(other, name, shared)
    if hooks := getattr(pipe, "_all_hooks", None):  # accelerate's: they belong to the pipeline's own modules
        other.maybe_free_model_hooks = lambda: [hook.offload() for hook in hooks]
    if is_modular(pipe):
        other._blocks = quiet(pipe.blocks)
    else:
        other.set_progress_bar_config(disable=True)
    return other


def quiet(blocks: Any) -> Any:
    """Returns blocks of a modular pipeline that show no progress; what they hold is shared."""
    other = copy.copy(blocks)
    if blocks.sub_blocks:
        other.sub_blocks = type(blocks.sub_blocks)((name, quiet(one)) for name, one in blocks.sub_blocks.items())
    if isinstance(other, diffusers.LoopSequentialPipelineBlocks):
        other.set_progress_bar_config(disable=True)
    return other


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
