"""What each block or layer gives, by least squares on what it gave before or on what enters it, in full runs."""

from collections import defaultdict
from collections.abc import Sequence

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


class AffineHook(WatchHook):
    """Sums what a scale and a shift of each channel need, from the last computed step of a row to each skipped one.

    By block and step: a count, and the sums of x, y, x x and x y, with shape (5, C).
    """

    def __init__(self, site: str, rows: Sequence[Sequence[int]]) -> None:
        super().__init__(site)
        self.rows = rows

    def watch(self, place: Place, index: int, given: Streams, leaves: Streams, entered: Tensor | None) -> None:
        for name, value in given.items():
            if index in self.rows[place[1]] or (*place, name) not in self.kept:
                self.kept[(*place, name)] = channels_last(value.detach())
                continue
            x, y = self.kept[(*place, name)], channels_last(value)
            if x.shape == y.shape and x.shape[1] == given[IMAGE].shape[-1 if value.ndim == 3 else 1]:
                sums = [torch.ones_like(x[0]) * len(x), x.sum(0), y.sum(0), (x * x).sum(0), (x * y).sum(0)]
                self.sums[place[1], index] = self.sums[place[1], index] + torch.stack(sums)


def fit_affine(
    setup: Setup, prompts: PromptSet, site: str, rows: Sequence[Sequence[int]], channels: bool
) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """Returns scales and shifts for each block or layer and skipped step, as `forecasts.affine` has them.

    Arguments:
        rows: The computed steps of each block or layer.
        channels: Whether each channel has its own; otherwise there is one scale for all.
    """
    hook = AffineHook(site, rows).follow(setup, prompts)
    table: list[list[tuple[float, ...]]] = [[()] * hook.steps for _ in rows]
    for (number, index), sums in hook.sums.items():
        count, x, y, xx, xy = sums.cpu().numpy()
        if not channels:
            table[number][index] = (float(xy.sum() / max(xx.sum(), 1e-30)),)
            continue
        spread = xx - x * x / count
        ridge = LEAST * spread.mean() + 1e-30  # towards a scale of one
        scale = (xy - x * y / count + ridge) / (spread + ridge)
        table[number][index] = tuple(map(float, np.concatenate([scale, (y - scale * x) / count])))
    return tuple(map(tuple, table))


class IncrementHook(WatchHook):
    """Sums products of what enters each layer and of what it gives, both as changes since the step before."""

    def watch(self, place: Place, index: int, given: Streams, leaves: Streams, entered: Tensor | None) -> None:
        if entered is None or entered.ndim != 3 or entered.shape[:2] != given[IMAGE].shape[:2]:
            return
        x, y = channels_last(entered.detach()), channels_last(given[IMAGE].detach())
        before, self.kept[place] = self.kept.get(place), (index, x, y)
        if before is not None and before[0] < index and before[1].shape == x.shape:
            dx, dy = x - before[1], y - before[2]
            xx, xy = self.sums.get(place[1], (0.0, 0.0))
            self.sums[place[1]] = xx + dx.T @ dx, xy + dx.T @ dy


def fit_increments(setup: Setup, prompts: PromptSet, site: str, rank: int) -> list[tuple[Array, Array]]:
    """Returns for each layer the matrix of a rank that maps changes of its input to those of its output best.

    Arguments:
        rank: The most columns of the factors.

    Returns:
        By layer the factors with shapes (r, D) and (r, E); r is 0 where nothing could be fitted.
    """
    hook = IncrementHook(site).follow(setup, prompts)
    none = np.zeros((0, 0)), np.zeros((0, 0))
    return [
        reduced_rank(hook.sums[k][0].cpu().numpy(), hook.sums[k][1].cpu().numpy(), rank) if k in hook.sums else none
        for k in range(len(hook.names))
    ]


def reduced_rank(xx: Array, xy: Array, rank: int) -> tuple[Array, Array]:
    """Returns the factors of the least squares solution of a rank, with shapes (r, D) and (r, E).

    Arguments:
        xx: Inner products of inputs, with shape (D, D).
        xy: Those of inputs and outputs, with shape (D, E).
    """
    solution = np.linalg.solve(xx + RIDGE * np.trace(xx) / len(xx) * np.eye(len(xx)) + 1e-30 * np.eye(len(xx)), xy)
    # Of all subspaces of the outputs, the one with most of what the inputs explain.
    _, directions = np.linalg.eigh(solution.T @ xx @ solution)
    up = directions[:, ::-1][:, :rank].T
    return np.asarray((solution @ up.T).T), np.asarray(up)


class PositionHook(WatchHook):
    """Sums by how much each token of the layers of one length has changed since the step before, over its size."""

    def watch(self, place: Place, index: int, given: Streams, leaves: Streams, entered: Tensor | None) -> None:
        new = given[IMAGE].detach().float()
        old, self.kept[place] = self.kept.get(place), new.clone()
        if old is not None and new.ndim == 3 and old.shape == new.shape:
            change = (new - old).norm(dim=-1) / old.norm(dim=-1).clamp_min(TINY)
            self.sums[new.shape[1]] = self.sums[new.shape[1]] + change.mean(0)


def fit_positions(setup: Setup, prompts: PromptSet) -> tuple[tuple[float, ...], ...]:
    """Returns the mean relative change of each token in feed-forward layers, over the mean of all; a row a length."""
    hook = PositionHook("mlp").follow(setup, prompts)
    return tuple(tuple((sums / sums.mean()).cpu().tolist()) for sums in hook.sums.values())


class GateHook(WatchHook):
    """Keeps the mean of what enters each layer, and by how much what it gives has changed since the step before."""

    def __init__(self, site: str) -> None:
        super().__init__(site)
        self.seen: dict[int, list[tuple[int, Tensor, Tensor]]] = defaultdict(list)

    def watch(self, place: Place, index: int, given: Streams, leaves: Streams, entered: Tensor | None) -> None:
        new = given[IMAGE].detach()
        old, self.kept[place] = self.kept.get(place), (index, new.clone())
        if old is not None and entered is not None and old[0] < index and old[1].shape == new.shape:
            self.seen[place[1]].append((index, pool(entered.detach()).mean(0), relative_change(new, old[1]).max()))


def fit_gates(setup: Setup, prompts: PromptSet, site: str, weights: Array) -> list[tuple[Array, Array, Array]]:
    """Returns for each layer the linear function of what enters that tells best what reuse is off by.

    Arguments:
        weights: What an error at each step does to the end result, with shape (N,).

    Returns:
        By layer its weights and its bias (D + 1,), with what it says of each input seen, and the error there, with
        shape (M,): the logarithm of the relative change times the root of the step's weight.
    """
    hook = GateHook(site).follow(setup, prompts)
    found = []
    for number in range(len(hook.names)):
        seen = hook.seen[number]
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
