"""What each block or layer does in full runs: what reuse is off by, how long it takes, and regressions.

References:
    | SmoothCache (Liu et al., 2024), https://arxiv.org/abs/2411.10510 (errors by type of layer)
"""

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import AttachError
from ..fitting.kernel import Array
from ..hooks import StepHook
from ..policies.gate import pool
from ..runs import PromptSet, Setup, in_double, synchronize
from ..schedule.rule import Site
from ..sites.blocks import Streams, added_streams, find_streams, unpack_streams
from ..sites.denoisers import IMAGE, find_layers, find_spec
from ..sites.interceptor import ModuleInterceptor, find_compiled, is_compiled
from ..sites.outputs import split_tensors
from ..step import TINY, entering, relative_change

Place = tuple[int, int]  # a branch, and the number of a block or layer


@dataclass(frozen=True)
class InstanceErrors:
    """What was measured of K blocks or layers in runs of N steps, the mean over prompts and branches."""

    names: tuple[str, ...]  # of the blocks or layers, in the order they are defined
    # Squared error of reusing what step i gave at step i + 1 + k, over the energy of what leaves the block there, with
    # shape (K, N, L). Infinite where there is no such step.
    errors: np.ndarray
    # relative L1 change of what each gives since the step before, with shape (K, N); 0 at the first
    changes: np.ndarray
    seconds: np.ndarray  # how long each takes, with shape (K,)
    channels: int  # the most channels any of them gives
    site: Site  # what they are


# Notes what was seen at a step: what is kept of a run, the place, the number of the step, what a block adds to each
# stream or what a layer returns, and the first tensor that entered.
Note = Callable[[dict[Any, Any], Place, int, Streams, Tensor | None], None]


class WatchHook(StepHook):
    """Follows what each block or layer of a denoiser is given and gives, in full runs."""

    def __init__(self, site: str, note: Note) -> None:
        self.site, self.note, self.steps = site, note, 0
        self.names: list[str] = []
        self.kept: dict[Any, Any] = {}  # of a run: what each block or layer gave before

    def install(self, gate: Any) -> ExitStack:
        with ExitStack() as undo:
            if len(gate.denoisers) > 1:
                raise AttachError(f"this pipeline has {len(gate.denoisers)} denoisers: plans for each block need one")
            denoiser = gate.denoisers[0]
            self.spec = find_spec(denoiser) if self.site == "blocks" else None
            if self.spec:
                modules = {
                    f"{name}.{k}": b for name in self.spec.blocks for k, b in enumerate(getattr(denoiser, name))
                }
            else:
                modules = find_layers(denoiser, self.site)
            if not modules:
                raise AttachError(f"{type(denoiser).__name__} has no layers for the site {self.site!r}")
            if is_compiled(denoiser) or (not self.spec and find_compiled(denoiser, modules)):
                raise AttachError(f"{type(denoiser).__name__} is compiled: measure its {self.site} before compiling")
            self.names = list(modules)
            for number, module in enumerate(modules.values()):
                ModuleInterceptor.install(module, gate, partial(self.call, gate, number), undo, shared=False)
            return undo.pop_all()

    def on_run_start(self, times: tuple[float, ...]) -> None:
        self.steps = len(times)

    def on_run_end(self) -> None:
        self.kept.clear()

    def follow(self, setup: Setup, prompts: PromptSet, stage: str = "") -> Self:
        """Follows full runs of prompts, one at a time, and returns itself."""
        for number, prompt in enumerate(prompts.batches(1)):
            setup.run(self, prompt)
            if stage:
                setup.progress(stage, number + 1, len(prompts))
        return self

    def call(
        self, gate: Any, number: int, module: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """A block or layer was called."""
        if (here := gate.here()) is None:
            return original(*args, **kwargs)
        output = self.compute(number, original, args, kwargs)
        step, branch = here
        if self.spec:
            left = unpack_streams(self.spec, output)
            given, leaves = added_streams(find_streams(self.spec, module, args, kwargs), left), left
        else:
            given = leaves = dict(zip((IMAGE, *range(8)), split_tensors(output)[1], strict=False))
        self.watch((branch, number), step.index, given, leaves, entering(args, kwargs))
        return output

    def compute(self, number: int, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Makes the call."""
        return original(*args, **kwargs)

    def watch(self, place: Place, index: int, given: Streams, leaves: Streams, entered: Tensor | None) -> None:
        """Notes what was seen at a step; `leaves` is what leaves a block."""
        self.note(self.kept, place, index, given, entered)


class InstanceHook(WatchHook):
    """Compares what each block or layer gives in full runs; sums stay on the device until they are asked for."""

    def __init__(self, site: str, longest: int) -> None:
        super().__init__(site, lambda *seen: None)
        self.longest, self.channels = longest, 0
        self.errors: dict[tuple[int, int, int], list[Tensor]] = defaultdict(list)
        self.changes: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        self.seconds: dict[int, list[float]] = defaultdict(list)

    def compute(self, number: int, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        synchronize()
        # On a CPU what else runs there is to make no difference.
        clock = time.perf_counter if torch.accelerator.is_available() else time.process_time
        start = clock()
        output = original(*args, **kwargs)
        synchronize()
        self.seconds[number].append(clock() - start)
        return output

    def watch(self, place: Place, index: int, given: Streams, leaves: Streams, entered: Tensor | None) -> None:
        new, number = given[IMAGE], place[1]
        self.channels = max(self.channels, new.shape[-1 if new.ndim == 3 else 1])
        energy = leaves[IMAGE].float().pow(2).mean().clamp_min(TINY)
        past = self.kept.setdefault(place, [])  # steps and outputs, newest first
        for before, old in past:
            if old.shape == new.shape and 0 < index - before <= self.longest:
                error = (new.float() - old.float()).pow(2).mean() / energy
                self.errors[number, before, index - before - 1].append(error)
                if index - before == 1:
                    self.changes[number, index].append(relative_change(new, old).mean())
        past.insert(0, (index, new.detach().clone()))
        del past[self.longest :]


def measure_instances(setup: Setup, prompts: PromptSet, site: Site, *, longest: int = 6) -> InstanceErrors:
    """Runs a pipeline in full and measures what reuse of each block or layer is off by, for up to `longest` steps.

    So many outputs of each are kept on the device.
    """
    hook = InstanceHook(site, longest).follow(setup, prompts, f"errors of each of the {site}")
    errors = np.full((len(hook.names), hook.steps, longest), np.inf)
    changes = np.zeros((len(hook.names), hook.steps))
    for place, values in hook.errors.items():
        errors[place] = float(torch.stack(values).mean())
    for at, values in hook.changes.items():
        changes[at] = float(torch.stack(values).mean())
    seconds = np.array([float(np.median(hook.seconds[number])) for number in range(len(hook.names))])
    return InstanceErrors(tuple(hook.names), errors, changes, seconds, hook.channels, site)


class LayerHook(StepHook):
    """Compares the outputs of layers of some types in full runs, up to `longest` steps back.

    Sums stay on the device until they are asked for.
    """

    def __init__(self, sites: Sequence[str], longest: int) -> None:
        self.sites, self.longest, self.steps = sites, longest, 0
        self.found: set[str] = set()  # the types there are
        self.kept: dict[Hashable, list[tuple[int, Tensor]]] = defaultdict(list)
        self.sums: dict[tuple[str, int, int], list[Tensor]] = defaultdict(list)
        self.times: dict[Hashable, int] = {}

    def install(self, gate: Any) -> ExitStack:
        with ExitStack() as undo:
            for site in self.sites:
                for denoiser in gate.denoisers:
                    layers = find_layers(denoiser, site)
                    if around := find_compiled(denoiser, list(layers)):
                        raise AttachError(f"{around} is compiled as a whole: its layers cannot be watched")
                    for name, layer in layers.items():
                        self.found.add(site)
                        call = partial(self.call, gate, site, name)
                        ModuleInterceptor.install(layer, gate, call, undo, shared=False)
            if not self.found:
                kind = type(gate.denoisers[0]).__name__
                raise AttachError(f"{kind} has no layers for the site {' or '.join(map(repr, self.sites))}")
            return undo.pop_all()

    def on_run_start(self, times: tuple[float, ...]) -> None:
        self.steps = len(times)

    def call(
        self, gate: Any, site: str, name: str, layer: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """A layer was called: compares what it returns with what it returned before."""
        output = original(*args, **kwargs)
        if (here := gate.here()) is None:
            return output
        step, branch = here
        place = (branch, name, step.index)
        self.times[place] = self.times.get(place, 0) + 1  # a layer may be called twice
        for number, tensor in enumerate(split_tensors(output)[1]):
            past = self.kept[branch, name, self.times[place], number]
            size = tensor.float().abs().mean().clamp_min(TINY)
            for index, old in past:
                if old.shape == tensor.shape and step.index - index <= self.longest:
                    error = (tensor.float() - old.float()).abs().mean() / size
                    self.sums[site, index, step.index - index - 1].append(error)
            past.insert(0, (step.index, tensor.detach().clone()))
            del past[self.longest :]
        return output

    def on_run_end(self) -> None:
        self.kept.clear()
        self.times.clear()


def layer_errors(setup: Setup, prompts: PromptSet, sites: Sequence[str], *, longest: int = 3) -> dict[str, np.ndarray]:
    """Runs a pipeline in full and measures the error of reuse of each type of layer that there is, for up to L steps.

    Returns:
        By site, the relative L1 error with shape (N, L) of an output of step i at step i + 1 + k: the mean
        over layers, branches and prompts. Infinite where there is no such step.
    """
    hook = LayerHook(sites, longest)
    for number, prompt in enumerate(prompts.batches(1)):
        setup.run(hook, prompt)
        setup.progress("errors of layers", number + 1, len(prompts))
    errors = {site: np.full((hook.steps, longest), np.inf) for site in sites if site in hook.found}
    for (site, index, back), values in hook.sums.items():
        errors[site][index, back] = float(torch.stack(values).mean())
    return errors


RIDGE = 1e-4  # relative to the mean of the diagonal
LEAST, STRONG = 1e-7, 1.0  # likewise: of the spread of single channels, and of gates


def channels_last(x: Tensor) -> Tensor:
    """Returns outputs as rows of channels, with shape (*, C), in double precision."""
    return in_double((x if x.ndim < 4 else x.movedim(1, -1)).flatten(0, -2))


def fit_affine(
    setup: Setup, prompts: PromptSet, site: str, rows: Sequence[Sequence[int]], channels: bool
) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """Returns scales and shifts for each block or layer and skipped step, as `forecasts.channels` has them.

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
