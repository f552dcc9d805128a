"""All tiny pipelines, by name, and what tests and the table of supported pipelines do with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from adaptcache.engines.diffusers.identity import fingerprint
from adaptcache.engines.diffusers.components import denoisers_of
from adaptcache.forecasts.base import Forecast
from adaptcache.forecasts.extrapolate import Extrapolate
from adaptcache.policies.plan import Plan
from adaptcache.engines.diffusers.engine import DiffusersEngine, parameters_of
from adaptcache.profiling.reference import run_reference
from adaptcache.runs import PipelineCall, PromptSet, fork_rng
from adaptcache.runs import Setup as RunSetup
from adaptcache.schedule.format import Grid
from adaptcache.schedule.rule import Rule
from adaptcache.schedule.schedule import Schedule

from .audio import AUDIO
from .flux import FLUXES
from .image import IMAGE
from .ltx import LTX
from .setup import Setup
from .unet import UNET
from .video import VIDEO

__all__ = ["TABLE", "built", "counted", "generated", "grid_of", "planned", "same"]

TABLE: dict[str, Callable[[], Setup]] = {**FLUXES, **IMAGE, **UNET, **VIDEO, **LTX, **AUDIO}


def built(name: str) -> Setup:
    """Builds a pipeline of the table; always the same weights."""
    torch.manual_seed(0)
    setup = TABLE[name]()
    setup.pipe.set_progress_bar_config(disable=True)
    for part in setup.pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return setup


def generated(setup: Setup, pipe: Any = None, sample: int = 0, **arguments: Any) -> list[Tensor]:
    """Runs the pipeline on one sample and returns all it returns (video and audio), not decoded."""
    pipe = pipe or setup.pipe
    own = {
        "num_inference_steps": setup.steps,
        "generator": torch.Generator().manual_seed(sample),
        "output_type": "latent",
        "return_dict": False,
    }
    names, any_other = parameters_of(pipe)
    own = {name: value for name, value in own.items() if name in names or any_other}
    with fork_rng():
        torch.manual_seed(sample)  # some schedulers take no generator
        return tensors(pipe(**own | dict(setup.call) | setup.prompts[sample] | arguments))


def tensors(value: Any) -> list[Tensor]:
    """Returns the tensors and arrays in what a pipeline returned."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, Sequence):
        return [tensor for part in value for tensor in tensors(part)]
    return [] if value is None else [torch.as_tensor(value)]


def same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Whether two runs returned the same, to the bit."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def grid_of(setup: Setup) -> tuple[float, ...]:
    """Returns the times of a run."""
    run = RunSetup(DiffusersEngine(setup.pipe), PipelineCall(setup.steps, setup.call))
    return run_reference(run, PromptSet(tuple(setup.prompts[:1]))).times


def planned(setup: Setup, steps: Sequence[int], forecast: Forecast | None = None) -> Schedule:
    """Returns a schedule that computes the steps with these numbers."""
    times = grid_of(setup)
    return Schedule(
        name="by hand",
        denoiser=fingerprint(setup.pipe),
        grid=Grid(scheduler=type(setup.pipe.scheduler).__name__, times=times),
        rules=(Rule(policy=Plan.of(list(steps), times), forecast=forecast or Extrapolate(order=1)),),
    )


@contextmanager
def counted(pipe: Any) -> Iterator[list[str]]:
    """Notes every real forward of a denoiser, however it is called, by the denoiser's class."""
    calls: list[str] = []
    denoisers = denoisers_of(pipe)
    for denoiser in denoisers:

        def forward(
            *args: Any, _own: Any = denoiser.forward, _name: str = type(denoiser).__name__, **kwargs: Any
        ) -> Any:
            calls.append(_name)
            return _own(*args, **kwargs)

        denoiser.forward = forward
    try:
        yield calls
    finally:
        for denoiser in denoisers:
            del denoiser.forward
