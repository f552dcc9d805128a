"""The engine interface, until `adaptcache.hooks` and `adaptcache.runs` have it; then this file goes."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from adaptcache import engines, hooks, runs


class StepHook:
    def on_run_start(self, times: tuple[float, ...]) -> None:
        """Nothing."""

    def should_compute(self, step: Any) -> bool:
        return True

    def model_output(self, step: Any) -> Any:
        return step.u

    def on_step_end(self, step: Any, latents: Any) -> None:
        """Nothing."""

    def on_run_end(self) -> None:
        """Nothing."""


@dataclass(frozen=True)
class PromptSet:
    prompts: tuple[Any, ...]
    first: int = 0

    def batches(self, size: int) -> Any:
        return (self[at : at + size] for at in range(0, len(self.prompts), size))

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, int):
            return self.prompts[at]
        return PromptSet(tuple(self.prompts[at]), self.first + (at.start or 0))


@dataclass(frozen=True)
class PipelineCall:
    num_inference_steps: int
    pipe_kwargs: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    images: list[Any]


class Visitor:
    """Passes what the gate asks and tells on to a hook."""

    def __init__(self, hook: Any) -> None:
        self.begin, self.computes, self.end = hook.on_run_start, hook.should_compute, hook.on_run_end
        self.update = lambda update: update.move.u
        self.landed = lambda update, y: None


@dataclass
class DiffusersEngine:
    pipe: Any
    exclusive: bool = False

    def describe(self, call: Any) -> tuple[dict[str, Any], str, str, dict[str, Any]]:
        from adaptcache.engines.diffusers.identity import fingerprint

        return fingerprint(self.pipe).model_dump(), type(self.pipe.scheduler).__name__, "", {}


@dataclass(frozen=True)
class Setup:
    engine: Any
    call: Any
    batch_size: int = 1
    progress: Any = lambda stage, done, of: None

    def run(self, hook: Any, prompts: Any, *, decode: bool = False) -> Outcome:
        from adaptcache.engines.diffusers.gate import Gate
        from adaptcache.profiling.reference import twin

        pipe = self.engine.pipe if self.engine.exclusive else twin(self.engine.pipe)
        call = runs.Call(self.call.num_inference_steps, self.call.pipe_kwargs, self.call.seed)
        with closing(Gate(pipe, Visitor(hook)).open()):
            made = call(pipe, list(prompts.prompts), prompts.first, "np" if decode else "latent")
        return Outcome([np.asarray(image) for image in made] if decode else [])


for module, values in ((hooks, (StepHook,)), (runs, (PromptSet, PipelineCall, Setup))):
    for value in values:
        if not hasattr(module, value.__name__):
            setattr(module, value.__name__, value)
if importlib.util.find_spec("adaptcache.engines.diffusers.engine") is None:
    name = "adaptcache.engines.diffusers.engine"
    sys.modules[name] = types.SimpleNamespace(DiffusersEngine=DiffusersEngine)
    engines.engine_for = DiffusersEngine
