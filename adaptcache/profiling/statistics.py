"""What of a full run goes into a profile: inner products and curves, without a second copy of the run."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..profile import Profile
from ..runs import PromptSet

if TYPE_CHECKING:
    from .reference import Trajectory

CHUNK = 2**16  # values of each vector that are in float64 at a time: 50 MB for 100 vectors


def statistics_of(run: Trajectory, prompts: PromptSet) -> list[dict[str, np.ndarray]]:
    """Returns the arrays of a profile, one dictionary a prompt. Tracks count with equal weight.

    Raises:
        ValueError: All outputs of a prompt are zero.
    """
    rows, samples = [], len(prompts)
    for k in range(samples):
        grams, curves = [], []
        for u, x in zip(run.u, run.x, strict=True):
            if not u:
                continue  # a scheduler that only its copies step for
            gram = joint_products(*([sample(tensor, k, samples) for tensor in tensors] for tensors in (u, x)))
            energy = np.diagonal(gram)[: len(u)].mean()
            if energy == 0:
                continue  # latents that stand still (the sound of a pipeline that makes none)
            grams.append(gram / energy)
            # Generators: two outputs at a time are in float32.
            kinds = ((change, u), (change, x), (magnitude, u))
            curves.append([curve(part(tensor, k, samples) for tensor in values) for curve, values in kinds])
        if not grams:
            raise ValueError(
                f"the denoiser's outputs for prompt {prompts.first + k} are zero at every step: nothing can be "
                "fitted to them; check the weights and the call"
            )
        change_out, change_in, ratio = np.mean(curves, axis=0)
        gram = np.mean(grams, axis=0)
        rows.append({"gram": gram, "magnitude": ratio, "change_in": change_in, "change_out": change_out})
    return rows


def build_profile(
    times: Sequence[float], rows: Sequence[dict[str, np.ndarray]], about: dict[str, Any] | None = None
) -> Profile:
    """Returns the arrays of all prompts as a profile without sensitivities."""
    arrays: dict[str, Any] = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return Profile(times=np.array(times), sensitivities=np.zeros((0, len(times))), about=about or {}, **arrays)


def inner_products(vectors: Sequence[Tensor]) -> np.ndarray:
    """Returns the Gram matrix of M tensors in float64, with shape (M, M), a chunk of all of them at a time."""
    flat = [vector.reshape(-1) for vector in vectors]
    gram = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for start in range(0, len(flat[0]), CHUNK):
        piece = torch.stack([vector[start : start + CHUNK].double() for vector in flat])
        gram.addmm_(piece, piece.T)
    return gram.numpy()


def joint_products(outputs: list[Tensor], latents: list[Tensor]) -> np.ndarray:
    """Returns the inner products of outputs and latents; those between them are 0 where their shapes differ."""
    if all(u.shape == x.shape for u, x in zip(outputs, latents, strict=True)):
        return inner_products([*outputs, *latents])
    gram, count = np.zeros((2 * len(outputs),) * 2), len(outputs)
    gram[:count, :count], gram[count:, count:] = inner_products(outputs), inner_products(latents)
    return gram


def sample(tensor: Tensor, k: int, samples: int) -> Tensor:
    """Returns sample k of a batch; all of it where the first dimension is not the batch."""
    if samples == 1 or tensor.shape[0] % samples:
        return tensor
    return tensor.view(samples, -1, *tensor.shape[1:])[k]


def part(tensor: Tensor, k: int, samples: int) -> Tensor:
    """Returns sample k of a batch in float32."""
    return sample(tensor, k, samples).float()


def check_finite(value: Tensor, what: str, step: int, prompts: PromptSet) -> None:
    """Raises where a value (B, *) is not finite, and says what it is, at which step and for which prompt."""
    if bool(torch.isfinite(value).all()):
        return
    samples = len(prompts)
    bad = [k for k in range(samples) if not bool(torch.isfinite(sample(value, k, samples)).all())]
    cure = "load the pipeline in bfloat16 or float32" if value.dtype == torch.float16 else "check the weights"
    raise ValueError(
        f"{what} of prompt {prompts.first + bad[0]} at step {step} has values that are not finite "
        f"({str(value.dtype).removeprefix('torch.')}): {cure}, or leave the prompt out"
    )


def relative_error(value: Tensor, truth: Tensor) -> float:
    """Returns the squared error over the energy of the truth."""
    value, truth = value.double(), truth.double()
    return float((value - truth).square().sum() / truth.square().sum().clamp_min(1e-30))


def change(values: Iterable[Tensor]) -> np.ndarray:
    """Returns the relative L1 change from the value before, 0 for the first, with shape (N,)."""
    pairs = itertools.pairwise(values)
    return np.array([0.0, *(float((b - a).abs().mean() / a.abs().mean().clamp_min(1e-12)) for a, b in pairs)])


def magnitude(values: Iterable[Tensor]) -> np.ndarray:
    """Returns the mean ratio of norms of feature vectors to the value before, 1 for the first.

    A feature vector lies along the last dimension of a sequence of tokens, and along the channels, dimension
    1, of latents that are an image or a clip.
    """
    pairs = itertools.pairwise(value.norm(dim=1 if value.ndim > 3 else -1) for value in values)
    return np.array([1.0, *(float((b / a.clamp_min(1e-12)).mean()) for a, b in pairs)])
