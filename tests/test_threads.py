"""Matching runs pipelines in threads: what the caller set for its own thread holds there as well."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

import pytest
import torch

import adaptcache
from tests.toy import PROMPTS, Pipe

OWN: ContextVar[str] = ContextVar("OWN", default="")


@contextlib.contextmanager
def own_variable() -> Iterator[None]:
    token = OWN.set("mine")
    try:
        yield
    finally:
        OWN.reset(token)


@contextlib.contextmanager
def autocast_and_inference() -> Iterator[None]:
    with torch.inference_mode(), torch.autocast("cpu", torch.float16):
        yield


State = tuple[Callable[[], AbstractContextManager[Any]], Callable[[], bool]]
STATES: dict[str, State] = {  # how it is entered, and whether it is on
    "autocast": (lambda: torch.autocast("cpu", torch.bfloat16), lambda: torch.is_autocast_enabled("cpu")),
    "inference mode": (torch.inference_mode, torch.is_inference_mode_enabled),
    "autocast to float16 in inference mode": (
        autocast_and_inference,
        lambda: torch.is_inference_mode_enabled() and torch.get_autocast_dtype("cpu") == torch.float16,
    ),
    "no gradients": (torch.no_grad, lambda: not torch.is_grad_enabled()),
    "gradients": (torch.enable_grad, torch.is_grad_enabled),
    "a context variable": (own_variable, lambda: OWN.get() == "mine"),
    "a device for new tensors": (
        lambda: torch.device("cpu", 0),
        lambda: torch.get_default_device() == torch.device("cpu", 0),
    ),
}


@pytest.mark.parametrize("state", STATES)
def test_all_denoiser_calls_of_a_calibration_run_in_the_state_of_the_caller(state: str) -> None:
    context, on = STATES[state]
    seen = []

    class Watched(Pipe):
        def __call__(self, prompt, num_inference_steps=12, generator=None, output_type="latent",
                     return_dict=False):  # fmt: skip
            seen.append(on())
            return super().__call__(prompt, num_inference_steps, generator)

    with context():
        adaptcache.calibrate(Watched(), PROMPTS, 8, speed=2)
    assert len(seen) > 2 * len(PROMPTS) and all(seen)


@pytest.mark.parametrize("state", STATES)
def test_the_state_of_the_caller_is_as_it_was(state: str) -> None:
    before = [on() for _, on in STATES.values()]
    with STATES[state][0]():
        adaptcache.calibrate(Pipe(), PROMPTS, 8, speed=2)
    assert [on() for _, on in STATES.values()] == before
