"""What a richer weighted sum would gain: weights by frequency band, by group of channels, by prompt.

    python -m benchmarks.floor --model emoji-flux-32 --budget 0.36

Forecasts of the skipped steps of full runs from the outputs of the last four computed steps and the first latents, by
the plan that calibration begins with: weights fitted on calibration prompts, relative error on held-out ones, in dB in
the mean over steps and prompts (and on the calibration prompts). The last row's weights are each held-out prompt's
own, fitted to the very output that is to be foretold: no rule for choosing weights can do better.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.fft import dctn

from adaptcache.calibration.search import plans_for
from adaptcache.engines import make_setup
from adaptcache.fitting.kernel import Array, solve_ridge
from adaptcache.presets import read_prompts, resolve
from adaptcache.profiling.measure import measure
from adaptcache.runs import PromptSet

HISTORY, RIDGE = 4, 1e-5
Signals = Callable[[Sequence[Array]], list[Array]]  # numbers of each prompt, of its computed outputs, newest first


def channels_last(values: Sequence[torch.Tensor]) -> Array:
    """Returns outputs with shape (N, B, height, width, C), or with frames before the height."""
    found = torch.stack(list(values)).double().numpy()
    if found.ndim == 4:  # packed tokens of a square image
        side = round(found.shape[2] ** 0.5)
        return found.reshape(*found.shape[:2], side, side, -1)
    return np.moveaxis(found, 2, -1)


def whole(runs: Array) -> list[Array]:
    """Returns one group: everything, with shape (N, B, D)."""
    return [runs.reshape(*runs.shape[:2], -1)]


def by_band(bands: int) -> Callable[[Array], list[Array]]:
    """Splits by radial frequency, in bands of equal width on a logarithmic scale."""

    def split(runs: Array) -> list[Array]:
        axes = tuple(range(2, runs.ndim - 1))
        spectrum = dctn(runs, axes=axes, norm="ortho")
        radius = np.linalg.norm(
            np.stack(np.meshgrid(*(np.arange(runs.shape[a]) for a in axes), indexing="ij")), axis=0
        )
        band = np.digitize(radius, np.geomspace(1, radius.max() + 1, bands + 1)[1:-1] - 1)
        return [spectrum[:, :, band == number].reshape(*runs.shape[:2], -1) for number in range(bands)]

    return split


def by_channels(groups: int, basis: Array) -> Callable[[Array], list[Array]]:
    """Splits by principal component of the channels, strongest first."""
    return lambda runs: [
        (runs @ chosen).reshape(*runs.shape[:2], -1) for chosen in np.array_split(basis, groups, axis=1)
    ]


def no_signals(known: Sequence[Array]) -> list[Array]:
    return []


def movement(known: Sequence[Array]) -> list[Array]:
    """Returns how alike the last two changes are, and how large the last one is."""
    if len(known) < 3:
        return []
    last, before = known[0] - known[1], known[1] - known[2]
    sizes = [np.square(v).sum(1) for v in (last, before, known[0])]
    return [(last * before).sum(1) / sizes[1], np.log(sizes[0] / sizes[2])]


def features(runs: Array, step: int, plan: Sequence[int], signals: Signals) -> Array:
    """Returns what a forecast of a step is made of, with shape (K, B, D)."""
    known = [runs[i] for i in reversed(plan) if i < step][:HISTORY]
    scaled = ((value - value.mean()) / (value.std() or 1.0) for value in signals(known))
    return np.stack([*known, runs[-1], *(s[:, None] * v for s in scaled for v in known[:3])])


def decibels(groups: Sequence[list[Array]], plan: Sequence[int], signals: Signals = no_signals) -> list[float]:
    """Returns the relative error on held-out and on calibration prompts."""
    steps = len(groups[0][0]) - 1
    errors = np.zeros((2, steps - len(plan), groups[0][0].shape[1]))
    energy = [sum(np.square(group[:-1]).sum(2) for group in of) for of in groups]
    for row, step in enumerate(i for i in range(steps) if i not in plan):
        for held_out, fitted in zip(*groups, strict=True):
            x, scale = features(fitted, step, plan, signals), 1 / energy[1][step]
            gram = np.einsum("kbd,lbd,b->kl", x, x, scale)
            weights = solve_ridge(gram, np.einsum("kbd,bd,b->k", x, fitted[step], scale), np.eye(len(x))[0], RIDGE)
            for number, runs in enumerate((held_out, fitted)):
                missed = np.tensordot(weights, features(runs, step, plan, signals), 1) - runs[step]
                errors[number, row] += np.square(missed).sum(1) / energy[number][step]
    return [float(-10 * np.log10(of).mean()) for of in errors]


def own_weights(runs: Array, plan: Sequence[int]) -> float:
    """Returns the relative error with the best weights of each prompt and step."""
    errors = []
    for step in (i for i in range(len(runs) - 1) if i not in plan):
        for x, y in zip(features(runs, step, plan, no_signals).transpose(1, 2, 0), runs[step], strict=True):
            missed = x @ np.linalg.lstsq(x, y, rcond=None)[0] - y
            errors.append((missed @ missed) / (y @ y))
    return float(-10 * np.log10(errors).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji-flux")
    parser.add_argument("--budget", type=float, default=0.36)
    parser.add_argument("--prompts", type=int, default=16)
    asked = parser.parse_args()
    preset = resolve(asked.model)
    pipe, known = preset.load_pipeline(), read_prompts(preset.prompts)
    options = {"pipe_kwargs": preset.call, "batch_size": asked.prompts, "progress": False}
    runs = []
    for prompts in (known.held_out, known.calibration):
        setup = make_setup(pipe, preset.steps, options)
        measurement = measure(setup, PromptSet.of(prompts[: asked.prompts]))
        (run,) = measurement.runs
        runs.append(channels_last([*run.u[0], run.x[0][0]]))
    steps = measurement.profile.steps
    plan = next(iter(plans_for(measurement.profile, max(2, int(asked.budget * steps)))))
    outputs = runs[1][:-1].reshape(-1, runs[1].shape[-1])
    basis = np.linalg.eigh(outputs.T @ outputs)[1][:, ::-1]
    splits: dict[str, Callable[[Array], list[Array]]] = {
        "one set of weights": whole,
        "2 bands": by_band(2),
        "4 bands": by_band(4),
        "4 groups of channels": by_channels(4, basis),
        "every principal channel": by_channels(len(basis), basis),
    }
    print(f"{asked.model}, plan {list(plan)}\n\n| weights | held-out prompts | calibration prompts |\n|---|---|---|")
    for name, split in splits.items():
        print(f"| {name} | {' | '.join(f'{v:.2f}' for v in decibels([*map(split, runs)], plan))} |")
    moved = decibels([*map(whole, runs)], plan, movement)
    print(f"| that follow each prompt's movement | {' | '.join(f'{v:.2f}' for v in moved)} |")
    print(f"| each held-out prompt's own | {own_weights(whole(runs[0])[0], plan):.2f} | - |")


if __name__ == "__main__":
    main()
