"""All tiny pipelines, by name, and what tests and the table of supported pipelines do with them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from adaptcache.engines.diffusers.calls import NO_LATENT, parameters_of, takes_latent
from adaptcache.engines.diffusers.components import denoisers_of, is_modular
from adaptcache.engines.diffusers.identity import fingerprint
from adaptcache.forecasts.base import Forecast
from adaptcache.forecasts.extrapolate import Extrapolate
from adaptcache.policies.plan import Plan
from adaptcache.profiling.reference import run_reference
from adaptcache.runs import PromptSet, fork_rng
from adaptcache.schedule.format import Grid
from adaptcache.schedule.rule import Rule
from adaptcache.schedule.schedule import Schedule
from tests.calls import Call

from .audio import AUDIO
from .flux import FLUXES
from .image import IMAGE
from .ltx import LTX
from .modular import MODULAR
from .others import OTHERS
from .setup import Setup
from .unet import UNET
from .video import VIDEO

__all__ = ["MORE", "TABLE", "built", "counted", "generated", "grid_of", "planned", "same"]

TABLE: dict[str, Callable[[], Setup]] = {**FLUXES, **IMAGE, **UNET, **VIDEO, **LTX, **AUDIO}
MORE: dict[str, Callable[[], Setup]] = {**MODULAR, **OTHERS}  # by class: the rest of what diffusers exports


def built(name: str) -> Setup:
    """Builds a pipeline of the table; always the same weights."""
    torch.manual_seed(0)
    setup = (TABLE | MORE)[name]()
    if not is_modular(setup.pipe):
        setup.pipe.set_progress_bar_config(disable=True)
    for part in setup.pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    for denoiser in denoisers_of(setup.pipe) if name in MORE else ():
        for weight in denoiser.parameters():
            if weight.ndim > 1 and not weight.any():  # as it is initialised: it would answer nothing but zeros
                torch.nn.init.normal_(weight, std=0.05)
    return setup


def generated(setup: Setup, pipe: Any = None, sample: int = 0, **arguments: Any) -> list[Tensor]:
    """Runs the pipeline on one sample and returns all it returns (video and audio), not decoded."""
    pipe, own = pipe or setup.pipe, {"output_type": "latent", "return_dict": False}
    own |= {"generator": torch.Generator().manual_seed(sample), "num_inference_steps": setup.steps}
    names, any_other = parameters_of(pipe)
    own = {name: value for name, value in own.items() if any_other or name in names}
    if not (is_modular(pipe) or takes_latent(pipe)):
        own["output_type"] = "np"
    if is_modular(pipe):
        made = {one.name for one in pipe.blocks.intermediate_outputs}
        own["output"] = next(name for name in ("segment_frames", "latent_chunks", "latents") if name in made)
    with fork_rng():
        torch.manual_seed(sample)  # some schedulers take no generator
        given = own | dict(setup.call) | arguments | dict(setup.prompts[sample])
        try:
            return tensors(pipe(**given))
        except UnboundLocalError:
            if own.get("output_type") != "latent":
                raise
            NO_LATENT.add(type(pipe))
    return generated(setup, pipe, sample, **arguments)


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
    prompts = setup.prompts
    setup = Call(setup.steps, dict(setup.call)).of(setup.pipe)
    return run_reference(setup, PromptSet(tuple(prompts[:1]))).times


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

        @functools.wraps(denoiser.forward)  # some pipelines ask for the names of its arguments
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
