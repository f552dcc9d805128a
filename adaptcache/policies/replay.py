"""Runs a policy on a profile instead of a pipeline: what would it compute?

A profile keeps inner products and no tensors. Vectors with the same inner products exist, and a random
rotation into many dimensions gives them the same relative L1 distances too, to about a percent: its
coordinates are Gaussian, and mean absolute values then tell lengths. So any policy can be asked, with
the code that will run, thousands of times a second.

Two limits: what is not in the profile cannot be replayed (policies that look inside the denoiser are shown
the latents), and the run is the full one, so errors of forecasts do not feed back.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ..profile import Profile
from ..step import Step
from .base import Policy

__all__ = ["calls_of", "replayed", "with_budget"]

AnyPolicy = TypeVar("AnyPolicy", bound=Policy)
WIDTH = 2048  # dimensions of the stand-ins
MOST = 4  # prompts that are replayed
LOW, HIGH, HALVINGS = 1e-6, 1e3, 24


def stand_ins(profile: Profile, prompt: int) -> tuple[Tensor, Tensor]:
    """Returns outputs and latents with the inner products of a prompt, each with shape (N, WIDTH)."""
    return _stand_ins(profile.gram[prompt].tobytes(), len(profile.gram[prompt]))


@functools.lru_cache(maxsize=64)
def _stand_ins(data: bytes, size: int) -> tuple[Tensor, Tensor]:
    gram = np.frombuffer(data).reshape(size, size)
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    factor = vectors * np.sqrt(np.maximum(values, 0.0))
    noise = np.random.default_rng(0).standard_normal((WIDTH, size))
    rotation = np.linalg.qr(noise)[0] if size <= WIDTH else noise / np.sqrt(WIDTH)
    rows = torch.from_numpy(factor @ rotation.T).float()
    return rows[: size // 2], rows[size // 2 :]


def replayed(policy: Policy, profile: Profile, prompt: int = 0) -> list[int]:
    """Returns the steps the policy computes on a prompt of the profile, rising."""
    outputs, latents = stand_ins(profile, prompt)
    times = tuple(map(float, profile.times))
    state, past = policy.init(times), tuple[int, ...]()
    for index in range(len(times)):
        x = latents[index : index + 1] if policy.signal != "none" else None
        step = Step(index, times, past, x=x)
        if index == 0 or policy.compute(state, step):
            policy.observe(state, step, outputs[index : index + 1])
            past = (index, *past)
    return list(reversed(past))


def calls_of(policy: Policy, profile: Profile) -> float:
    """Returns how many steps the policy computes, the mean over the first prompts of the profile."""
    prompts = range(min(MOST, len(profile.gram)))
    return float(np.mean([len(replayed(policy, profile, prompt)) for prompt in prompts]))


def with_budget(make: Callable[[float], AnyPolicy], profile: Profile, budget: float) -> AnyPolicy:
    """Returns the policy whose threshold spends a budget.

    Arguments:
        make: Gives the policy of a threshold; higher ones compute less.
        profile: What it is replayed on.
        budget: The fraction of the steps to compute, in (0, 1].
    """
    if not 0 < budget <= 1:
        raise ValueError(f"budget must be in (0, 1], got {budget:g}: the fraction of the calls that are made")
    if budget == 1:
        return make(0.0)
    wanted, low, high = budget * profile.steps, LOW, HIGH
    best, nearest = make(low), float("inf")
    for _ in range(HALVINGS):
        middle = float(np.sqrt(low * high))
        policy = make(middle)
        calls = calls_of(policy, profile)
        if abs(calls - wanted) < nearest:
            best, nearest = policy, abs(calls - wanted)
        if nearest < 1 / MOST:
            break
        low, high = (middle, high) if calls > wanted else (low, middle)
    return best
