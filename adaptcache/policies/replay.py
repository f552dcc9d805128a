"""Runs a policy on a profile instead of a pipeline, to see what it would compute.

A profile keeps inner products and no tensors. Vectors with the same inner products exist, and a random
rotation into many dimensions gives them the same relative L1 distances too, to about a percent: its
coordinates are Gaussian, and mean absolute values then measure lengths. So any policy can be run, with
the code that will run later, thousands of times a second.

Two limits: what is not in the profile cannot be replayed (policies that look inside the denoiser are given
the latents), and the run is the full one, so errors of forecasts do not feed back.
"""

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..profile import Profile
from ..step import Step

if TYPE_CHECKING:
    from .base import Policy

AnyPolicy = TypeVar("AnyPolicy", bound="Policy")
WIDTH = 2048  # dimensions of the vectors
MOST = 4  # prompts that are replayed
LOW, HIGH, HALVINGS = 1e-6, 1e3, 24


def build_vectors(profile: Profile, prompt: int) -> tuple[Tensor, Tensor]:
    """Returns outputs and latents with the inner products of a prompt, each with shape (N, WIDTH)."""
    return _build_vectors(profile.gram[prompt].tobytes(), len(profile.gram[prompt]))


@functools.lru_cache(maxsize=64)
def _build_vectors(data: bytes, size: int) -> tuple[Tensor, Tensor]:
    gram = np.frombuffer(data).reshape(size, size)
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    factor = vectors * np.sqrt(np.maximum(values, 0.0))
    noise = np.random.default_rng(0).standard_normal((WIDTH, size))
    rotation = np.linalg.qr(noise)[0] if size <= WIDTH else noise / np.sqrt(WIDTH)
    rows = torch.from_numpy(factor @ rotation.T).float()
    return rows[: size // 2], rows[size // 2 :]


def replay(policy: "Policy", profile: Profile, prompt: int = 0) -> list[int]:
    """Returns the steps the policy computes on a prompt of the profile, rising."""
    outputs, latents = build_vectors(profile, prompt)
    times = tuple(map(float, profile.times))
    state, past = policy.init(times), tuple[int, ...]()
    for index in range(len(times)):
        x = latents[index : index + 1] if policy.signal != "none" else None
        step = Step(index, times, past, x=x)
        if index == 0 or policy.compute(state, step):
            policy.observe(state, step, outputs[index : index + 1])
            past = (index, *past)
    return list(reversed(past))


def count_calls(policy: "Policy", profile: Profile) -> float:
    """Returns how many steps the policy computes, the mean over the first prompts of the profile."""
    prompts = range(min(MOST, len(profile.gram)))
    return float(np.mean([len(replay(policy, profile, prompt)) for prompt in prompts]))


def find_nearest(policies: Iterable[AnyPolicy], profile: Profile, budget: float) -> AnyPolicy:
    """Returns the first of the policies whose calls are nearest to a fraction of the steps."""
    return min(policies, key=lambda policy: abs(count_calls(policy, profile) - budget * profile.steps))


def fit_threshold(make: Callable[[float], AnyPolicy], profile: Profile, budget: float) -> AnyPolicy:
    """Returns the policy whose threshold spends a budget; higher ones compute less.

    Bisection with a memory, as calls need not fall everywhere where thresholds rise.
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
        calls = count_calls(policy, profile)
        if abs(calls - wanted) < nearest:
            best, nearest = policy, abs(calls - wanted)
        if nearest < 1 / MOST:
            break
        low, high = (middle, high) if calls > wanted else (low, middle)
    return best
