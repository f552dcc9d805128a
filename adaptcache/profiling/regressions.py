"""What each block or layer gives, by least squares on what it gave before or on what enters it, in full runs."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..fitting.kernel import Array
from ..policies.gate import pool
from ..runs import PromptSet, Setup, in_double
from ..sites.blocks import Streams
from ..sites.denoisers import IMAGE
from ..step import TINY, relative_change
from .instances import Place, WatchHook

RIDGE = 1e-4  # relative to the mean of the diagonal
LEAST, STRONG = 1e-7, 1.0  # likewise: of the spread of single channels, and of gates


def channels_last(x: Tensor) -> Tensor:
    """Returns outputs as rows of channels, with shape (*, C), in double precision."""
    return in_double((x if x.ndim < 4 else x.movedim(1, -1)).flatten(0, -2))


def fit_affine(
    setup: Setup, prompts: PromptSet, site: str, rows: Sequence[Sequence[int]], channels: bool
) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """Returns scales and shifts for each block or layer and skipped step, as `forecasts.affine` has them.

    Arguments:
        rows: The computed steps of each block or layer.
        channels: Whether each channel has its own; otherwise there is one scale for all.
    """
    # By block and step: a count, and the sums of x, y, x x and x y, with shape (5, C); from the last computed step of
    # a row to each skipped one.
    sums: dict[Place, Any] = defaultdict(float)

    def note(kept: dict[Any, Any], place: Place, index: int, given: Streams, entered: Tensor | None) -> None:
        for name, value in given.items():
            if index in rows[place[1]] or (*place, name) not in kept:
                kept[(*place, name)] = channels_last(value.detach())
                continue
            x, y = kept[(*place, name)], channels_last(value)
            if x.shape == y.shape and x.shape[1] == given[IMAGE].shape[-1 if value.ndim == 3 else 1]:
                new = [torch.ones_like(x[0]) * len(x), x.sum(0), y.sum(0), (x * x).sum(0), (x * y).sum(0)]
                sums[place[1], index] = sums[place[1], index] + torch.stack(new)

    hook = WatchHook(site, note).follow(setup, prompts)
    table: list[list[tuple[float, ...]]] = [[()] * hook.steps for _ in rows]
    for (number, index), found in sums.items():
        count, x, y, xx, xy = found.cpu().numpy()
        if not channels:
            table[number][index] = (float(xy.sum() / max(xx.sum(), 1e-30)),)
            continue
        spread = xx - x * x / count
        ridge = LEAST * spread.mean() + 1e-30  # towards a scale of one
        scale = (xy - x * y / count + ridge) / (spread + ridge)
        table[number][index] = tuple(map(float, np.concatenate([scale, (y - scale * x) / count])))
    return tuple(map(tuple, table))


def fit_increments(setup: Setup, prompts: PromptSet, site: str, rank: int) -> list[tuple[Array, Array]]:
    """Returns for each layer the matrix of a rank that maps changes of its input to those of its output best.

    By layer its factors with shapes (r, D) and (r, E); r is at most the rank, and 0 where nothing could be fitted.
    """
    sums: dict[int, tuple[Tensor, Tensor]] = {}  # products of changes since the step before

    def note(kept: dict[Any, Any], place: Place, index: int, given: Streams, entered: Tensor | None) -> None:
        if entered is None or entered.ndim != 3 or entered.shape[:2] != given[IMAGE].shape[:2]:
            return
        x, y = channels_last(entered.detach()), channels_last(given[IMAGE].detach())
        before, kept[place] = kept.get(place), (index, x, y)
        if before is not None and before[0] < index and before[1].shape == x.shape:
            dx, dy = x - before[1], y - before[2]
            xx, xy = sums.get(place[1], (0.0, 0.0))
            sums[place[1]] = xx + dx.T @ dx, xy + dx.T @ dy

    hook = WatchHook(site, note).follow(setup, prompts)
    none = np.zeros((0, 0)), np.zeros((0, 0))
    return [
        reduced_rank(sums[k][0].cpu().numpy(), sums[k][1].cpu().numpy(), rank) if k in sums else none
        for k in range(len(hook.names))
    ]


def reduced_rank(xx: Array, xy: Array, rank: int) -> tuple[Array, Array]:
    """Returns the factors of the least squares solution of a rank, with shapes (r, D) and (r, E).

    From inner products of inputs, with shape (D, D), and of inputs and outputs, with shape (D, E).
    """
    solution = np.linalg.solve(xx + RIDGE * np.trace(xx) / len(xx) * np.eye(len(xx)) + 1e-30 * np.eye(len(xx)), xy)
    # Of all subspaces of the outputs, the one with most of what the inputs explain.
    _, directions = np.linalg.eigh(solution.T @ xx @ solution)
    up = directions[:, ::-1][:, :rank].T
    return np.asarray((solution @ up.T).T), np.asarray(up)


def fit_positions(setup: Setup, prompts: PromptSet) -> tuple[tuple[float, ...], ...]:
    """Returns the mean relative change of each token in feed-forward layers, over the mean of all; a row a length."""
    sums: dict[int, Any] = defaultdict(float)  # by length

    def note(kept: dict[Any, Any], place: Place, index: int, given: Streams, entered: Tensor | None) -> None:
        new = given[IMAGE].detach().float()
        old, kept[place] = kept.get(place), new.clone()
        if old is not None and new.ndim == 3 and old.shape == new.shape:
            change = (new - old).norm(dim=-1) / old.norm(dim=-1).clamp_min(TINY)
            sums[new.shape[1]] = sums[new.shape[1]] + change.mean(0)

    WatchHook("mlp", note).follow(setup, prompts)
    return tuple(tuple((changes / changes.mean()).cpu().tolist()) for changes in sums.values())


def fit_gates(setup: Setup, prompts: PromptSet, site: str, weights: Array) -> list[tuple[Array, Array, Array]]:
    """Returns for each layer the linear function of what enters that tells best what reuse is off by.

    By layer its weights and its bias (D + 1,), with what it says of each input seen, and the error there, with shape
    (M,): the logarithm of the relative change times the root of the step's weight.
    """
    # By layer: a step, the mean of what entered, and by how much what it gives has changed since the step before.
    changes: dict[int, list[tuple[int, Tensor, Tensor]]] = defaultdict(list)

    def note(kept: dict[Any, Any], place: Place, index: int, given: Streams, entered: Tensor | None) -> None:
        new = given[IMAGE].detach()
        old, kept[place] = kept.get(place), (index, new.clone())
        if old is not None and entered is not None and old[0] < index and old[1].shape == new.shape:
            changes[place[1]].append((index, pool(entered.detach()).mean(0), relative_change(new, old[1]).max()))

    hook = WatchHook(site, note).follow(setup, prompts)
    found = []
    for number in range(len(hook.names)):
        seen = changes[number]
        x = np.array([value.float().cpu().numpy() for _, value, _ in seen], dtype=float)
        size = np.array([float(change) * weights[index] ** 0.5 for index, _, change in seen])
        y = np.log(np.maximum(size, 1e-12))
        centred = x - x.mean(0)
        gram = centred.T @ centred
        ridge = STRONG * np.trace(gram) / len(gram) + 1e-12  # far fewer samples than would tell all channels apart
        weight = np.linalg.solve(gram + ridge * np.eye(len(gram)), centred.T @ (y - y.mean()))
        bias = y.mean() - x.mean(0) @ weight
        found.append((np.append(weight, bias), x @ weight + bias, y))
    return found
