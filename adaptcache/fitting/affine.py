"""Samplers as affine maps: where each step lands as a sum of the first latents and the model outputs so far.

The steps of a deterministic sampler are linear in latents and outputs, whatever it keeps besides, so that

    x_{i+1} = maps[i, 0] x_0 + sum_{j <= i} maps[i, 1 + j] u_j.

`trace_steps` reads the maps off any sampler by stepping it with unit vectors; `build_sampler` makes those of two
common ones from noise levels alone.

References:
    | Euler and DDIM: Song et al. (2021), https://arxiv.org/abs/2010.02502
    | DPM++ 2M: Lu et al. (2022), https://arxiv.org/abs/2211.01095
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .kernel import Array

SAMPLERS = ("euler", "ddim", "dpm++2m")
PREDICTIONS = ("velocity", "noise", "data", "v")
FLAT = 1e-12  # weights below do not count
PURE = 1e-9  # signal shares below are taken for this one, whose logarithm is finite
LANDS = 1e-3  # of the latents: how far steps may miss a point that all outputs agree on
SHORT = 15  # steps: shorter runs of DPM++ end in a step of first order, as diffusers has it


@dataclass(frozen=True)
class AffineSampler:
    """A sampler on a grid."""

    # what the data are multiplied with in the latents of each denoiser call and at the end, with shape (N + 1,)
    alphas: Array
    sigmas: Array  # what the noise is multiplied with there, with shape (N + 1,)
    data: Array  # the data prediction is `data[i, 0] * latents + data[i, 1] * output`; with shape (N, 2)
    maps: Array  # where each step lands, as above, with shape (N, N + 1)

    def __post_init__(self) -> None:
        n = len(self.maps)
        if n == 0 or self.maps.shape != (n, n + 1) or self.data.shape != (n, 2):
            raise ValueError(f"maps {self.maps.shape} and data {self.data.shape} need shapes (N, N + 1) and (N, 2)")
        if self.alphas.shape != (n + 1,) or self.sigmas.shape != (n + 1,):
            raise ValueError(f"alphas {self.alphas.shape} and sigmas {self.sigmas.shape} need shape ({n + 1},)")
        if not all(np.isfinite(part).all() for part in (self.alphas, self.sigmas, self.data, self.maps)):
            raise ValueError("the sampler's steps hold numbers that are not finite; check the noise levels")
        own = np.diagonal(self.maps, 1)
        for values, says in (
            (self.data[:, 1], "its output says nothing of the data (no noise left?)"),
            (own, "it does not move with its output (two equal noise levels?)"),
        ):
            if (np.abs(values) < FLAT).any():
                raise ValueError(f"step {int(np.argmin(np.abs(values)))} cannot be forecast: {says}")

    def __len__(self) -> int:
        return len(self.maps)

    def follow_point(self) -> Array:
        """Returns the latents before each step and after the last as shares of d and n, with shape (N + 1, 2).

        They start at `alpha d + sigma n`, and every output says that the data are d.
        """
        history = np.zeros((len(self) + 1, 2))
        history[0] = latents = np.array([self.alphas[0], self.sigmas[0]])
        found = [latents]
        for i, (own, of_output) in enumerate(self.data):
            history[i + 1] = (np.array([1.0, 0.0]) - own * latents) / of_output
            latents = self.maps[i] @ history
            found.append(latents)
        return np.array(found)

    def missed(self) -> float:
        """Returns how far a point strays from its noise levels, relative to the latents.

        No consistent sampler lets it; one whose noise levels or kind of prediction were read wrongly does.
        """
        levels = np.stack([self.alphas, self.sigmas], 1)
        return float((np.abs(self.follow_point() - levels).max(1) / np.abs(levels).max(1)).max())

    def check(self) -> None:
        """Raises a `ValueError` where the noise levels or the kind of prediction were read wrongly, or make noise."""
        noise = self.sigmas / np.maximum(self.alphas + self.sigmas, FLAT)
        if noise[-1] >= noise[0]:
            raise ValueError("its noise levels rise")
        if not (missed := self.missed()) < LANDS:
            raise ValueError(
                f"its steps end {missed:.2g} of the latents away from where its noise levels and the kind of its "
                "prediction say"
            )

    def fewer(self, calls: int) -> AffineSampler:
        """Returns about the same sampler with fewer steps, for comparison: of first order, or DPM++ 2M."""
        falls = np.append(True, np.diff(self.sigmas / np.maximum(self.alphas + self.sigmas, FLAT)) < 0)
        alphas, sigmas = self.alphas[falls], self.sigmas[falls]
        first = build_sampler(sigmas, "ddim", "data", alphas)
        same = len(first) == len(self) and np.allclose(of_data(self), first.maps, atol=1e-3)
        return build_sampler(
            thin_levels(sigmas, calls), "ddim" if same else "dpm++2m", "data", thin_levels(alphas, calls)
        )


def of_data(sampler: AffineSampler) -> Array:
    """Returns the maps in terms of data predictions instead of outputs, with shape (N, N + 1)."""
    n = len(sampler)
    mixed = np.zeros((n + 1, n + 1))  # outputs, as sums of the first latents and data predictions
    mixed[0, 0] = 1.0
    for i, (own, of_output) in enumerate(sampler.data):
        latents = mixed[0] if i == 0 else sampler.maps[i - 1] @ mixed
        mixed[i + 1] = (np.eye(n + 1)[i + 1] - own * latents) / of_output
    return np.asarray(sampler.maps @ mixed)


def trace_steps(step: Callable[[int, Array, Array], Array], steps: int) -> Array:
    """Returns the maps of a sampler, found by stepping it with unit vectors; with shape (N, N + 1).

    A step is called with its number, latents and an output of shape (N + 1,), and returns where it lands.
    """
    basis = np.eye(steps + 1)
    latents, maps = basis[0], []
    for i in range(steps):
        latents = step(i, latents, basis[i + 1])
        maps.append(latents)
    return np.array(maps)


def build_sampler(
    sigmas: Array, sampler: str = "euler", prediction: str = "velocity", alphas: Array | None = None
) -> AffineSampler:
    """Returns a sampler from its noise levels.

    Arguments:
        sigmas: What the noise is multiplied with before each step and after the last, falling, with shape (N + 1,).
        sampler: "euler", "ddim" (the same maps) or "dpm++2m".
        prediction: What the model returns: "velocity" (noise less data, flow matching), "noise", "data", or "v".
        alphas: What the data are multiplied with, with shape (N + 1,). By default `1 - sigmas` (flow matching); ones
            for latents whose noise grows without bound (Euler of Stable Diffusion, EDM), and the square root of
            `1 - sigmas^2` where variance is preserved (DDIM).

    Raises:
        ValueError: Another sampler, noise levels that do not fall, or a prediction that says nothing there.

    Example:
        >>> sampler = build_sampler(np.linspace(1, 0, 29))
    """
    name = sampler.lower().replace(" ", "").replace("_", "")
    if name not in SAMPLERS:
        raise ValueError(
            f"instant schedules know the samplers {', '.join(SAMPLERS)} by noise levels alone, got {sampler!r}; "
            "adaptcache.attach(pipe, speed=...) reads other deterministic ones off the pipeline's scheduler"
        )
    levels = np.asarray(sigmas, dtype=float)
    signal = 1 - levels if alphas is None else np.asarray(alphas, dtype=float)
    check_levels(levels, signal)
    count = len(levels) - 1
    data = data_weights(prediction, signal[:count], levels[:count])
    with np.errstate(divide="ignore"):
        ratios = np.log(np.maximum(signal, PURE)) - np.log(levels)
    first_at_end = levels[-1] == 0 or count < SHORT
    known: list[Array] = []

    def step(i: int, latents: Array, output: Array) -> Array:
        guess = data[i, 0] * latents + data[i, 1] * output
        kept = levels[i + 1] / levels[i]
        new = signal[i + 1] - signal[i] * kept
        rest = np.zeros_like(guess)
        if name == "dpm++2m" and i > 0 and not (first_at_end and i == count - 1):
            rest = (guess - known[-1]) * (ratios[i + 1] - ratios[i]) / (2 * (ratios[i] - ratios[i - 1]))
        known.append(guess)
        return np.asarray(kept * latents + new * (guess + rest))

    return AffineSampler(signal, levels, data, trace_steps(step, count))


def check_levels(sigmas: Array, alphas: Array) -> None:
    """Raises where noise levels are not those of a run from noise to data."""
    if sigmas.ndim != 1 or len(sigmas) < 2 or sigmas.shape != alphas.shape:
        raise ValueError(
            f"sigmas of shape {sigmas.shape} and alphas of shape {alphas.shape}: give both before each step and after "
            "the last"
        )
    if not (np.isfinite(sigmas).all() and np.isfinite(alphas).all()) or (sigmas < 0).any() or (alphas < 0).any():
        raise ValueError("noise levels have to be finite and not negative")
    noise = sigmas / np.maximum(alphas + sigmas, FLAT)
    if (np.diff(noise) >= 0).any():
        at = int(np.argmax(np.diff(noise)))
        raise ValueError(
            f"noise levels have to fall, got sigma {sigmas[at]:.6g} and then {sigmas[at + 1]:.6g} at step {at}"
        )


def data_weights(prediction: str, alphas: Array, sigmas: Array) -> Array:
    """Returns the weights of latents and output in the data prediction, with shape (N, 2)."""
    if prediction == "data":
        return np.stack([np.zeros_like(sigmas), np.ones_like(sigmas)], axis=1)
    if prediction == "velocity":
        if np.abs(alphas + sigmas - 1).max() > 1e-4:
            raise ValueError(
                "a velocity is noise less data where alpha + sigma = 1 (flow matching); take 'v' for the angular one"
            )
        return np.stack([np.ones_like(sigmas), -sigmas], axis=1)
    if prediction == "v":
        whole = np.hypot(alphas, sigmas)
        return np.stack([alphas / whole**2, -sigmas / whole], axis=1)
    if prediction != "noise":
        raise ValueError(f"unknown prediction {prediction!r}: take one of {', '.join(PREDICTIONS)}")
    if (alphas < FLAT).any():
        raise ValueError(
            f"at step {int(np.argmin(alphas))} the latents are pure noise, where predicted noise says nothing of the "
            "data; start a little later, or take 'v' or 'velocity'"
        )
    return np.stack([1 / alphas, -sigmas / alphas], axis=1)


def with_end(alphas: Array, sigmas: Array, data: Array, maps: Array) -> AffineSampler:
    """Returns the sampler with the level its last step lands at, which is where a point of the data does."""
    sampler = AffineSampler(np.append(alphas, 1.0), np.append(sigmas, 0.0), data, maps)
    alpha, sigma = sampler.follow_point()[-1]
    return AffineSampler(np.append(alphas, alpha), np.append(sigmas, max(sigma, 0.0)), data, maps)


def thin_levels(levels: Array, steps: int) -> Array:
    """Returns the noise levels of a run with fewer steps, with shape (steps + 1,), from those with shape (N + 1,).

    Exact where levels are a function of the step's number over their number, as those of flow matching are.
    """
    return np.interp(np.linspace(0, len(levels) - 1, steps + 1), np.arange(len(levels)), levels)
