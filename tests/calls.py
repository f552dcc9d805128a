"""Calls of pipelines in tests: prompts, noise and steps as calibration gives them."""

import os
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")  # calibrating draws bars by default

from adaptcache.engines.diffusers.calls import call_pipeline
from adaptcache.engines.diffusers.engine import DiffusersEngine
from adaptcache.runs import PipelineCall, PromptSet, Setup


@dataclass(frozen=True)
class Call:
    """Calls a pipeline the same way again and again; `of` gives what calibration takes."""

    steps: int
    arguments: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __call__(self, pipe: Any, prompts: Any, first: int = 0, output_type: str = "latent") -> Any:
        call = PipelineCall(self.steps, self.arguments, self.seed)
        return call_pipeline(pipe, call, PromptSet(tuple(prompts), first), output_type)[0]

    def of(self, pipe: Any, **more: Any) -> Setup:
        return Setup(DiffusersEngine(pipe), PipelineCall(self.steps, self.arguments, self.seed), **more)
