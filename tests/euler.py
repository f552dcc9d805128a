"""An engine without diffusers: Euler steps of a small denoiser in torch. `python -m tests.euler` calibrates on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from adaptcache.hooks import SchedulerStep, StepHook
from adaptcache.runs import Job, Outcome, PipelineCall, PromptSet
from adaptcache.step import Step


@dataclass
class EulerStep(SchedulerStep):
    size: float = 0.0

    def preview(self, u: Tensor) -> Tensor:
        return self.x.to(u.dtype) - self.size * u


@dataclass
class EulerEngine:
    """Who runs the loop; a prompt is a text, whose length conditions the denoiser."""

    weights: tuple[Tensor, Tensor] = field(
        default_factory=lambda: tuple(torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0)) / 3)
    )

    def run(self, hook: StepHook, job: Job) -> Outcome:
        steps, calls, past = job.call.num_inference_steps * job.refine, [], ()
        seeds = [job.call.seed + job.prompts.first + k for k in range(len(job.prompts))]
        x = torch.stack([torch.randn(9, 6, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        condition = torch.tensor([float(len(prompt)) for prompt in job.prompts]).reshape(-1, 1, 1) / 10
        times, u = tuple(1 - i / steps for i in range(steps)), torch.zeros_like(x)
        with hook.install(self):
            for index, time in enumerate(times):
                made = hook.should_compute(Step(index, times if index else (), past, x=x)) or index == 0
                if made:
                    u = torch.tanh(x @ self.weights[0] + 3 * time + condition) @ self.weights[1] + x
                if index == 0:
                    hook.on_run_start(times)
                step = EulerStep(Step(index, times, past), 0, 0, made, x, u, 1 / steps)
                x = step.preview(hook.model_output(step))
                hook.on_step_end(step, x)
                past, calls = ((index, *past) if made else past), [*calls, (made,)]
            hook.on_run_end()
        return Outcome(list((x / 8 + 0.5).clamp(0, 1).numpy()) if job.decode else [], tuple(calls))

    def takes(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def identity(self, call: PipelineCall) -> Any:
        return [self.weights, call.num_inference_steps, call.seed]

    def describe(self, call: PipelineCall) -> tuple[dict[str, Any], str, str, dict[str, Any]]:
        return {"class_name": "Tanh", "config_hash": "0", "weights_hash": "0"}, "Euler", "euler", {}

    def check(self, schedule: Any, strict: bool = False) -> list[Any]:
        return []

    def preflight(self, call: PipelineCall, prompts: PromptSet) -> None:
        pass


def main() -> None:
    """Prints the calls of a calibrated schedule, its squared error, and that of as many even steps."""
    import adaptcache
    from adaptcache.evaluation.generate import generate
    from adaptcache.runs import Setup
    from adaptcache.runtime.runner import Runner

    engine, prompts = EulerEngine(), ["a", "lighthouse", "in a", "storm at night", "and all is calm"]
    schedule = adaptcache.calibrate(engine, prompts[:4], 16, budget=0.375, eval_prompts=prompts[4:], progress=False)
    held_out = PromptSet.of(prompts[4:], 4)
    full, few = (generate(Setup(engine, PipelineCall(steps)), held_out) for steps in (16, 6))
    runner = Runner(schedule)
    made = engine.run(runner, Job(PipelineCall(16), held_out, decode=True))
    assert runner.evidence == "calibrated" and schedule.evidence.calls == (6, 16)
    error, evenly = (((image - full.images[0]) ** 2).mean() for image in (made.images[0], few.images[0]))
    print(made.computed, error, evenly)


if __name__ == "__main__":
    main()
