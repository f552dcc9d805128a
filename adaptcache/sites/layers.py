"""The sites `attention`, `cross-attention`, `temporal-attention` and `mlp`: all layers of one type.

A guard stands before each layer of the type, in every block. At a skipped step each of them returns the
forecast of its own outputs; all around them runs as always. They decide together, once a step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..forecasts.history import History
from ..schedule.rule import Rule
from ..step import entering
from .decision import Course
from .interceptor import Sentry
from .models import layers_of
from .outputs import last_half, leading, put_together, taken_apart

__all__ = ["Layers", "compiled_around"]


def compiled_around(denoiser: nn.Module, names: list[str]) -> str:
    """Returns the name of a module that is compiled together with one of those named, or nothing."""
    around = {".".join(name.split(".")[:end]) for name in names for end in range(name.count(".") + 1)}
    for name in sorted(around):
        if Sentry.compiled(denoiser.get_submodule(name)):
            return name or type(denoiser).__name__
    return ""


class Layers:
    """Skips all layers of one type of one denoiser by a rule.

    What a dynamic policy looks at is what enters the first layer of a step's first branch, and what it
    observes is what leaves it. A layer that was never computed in a branch, or on other shapes, is.
    """

    def __init__(self, denoiser: nn.Module, gate: Any, rule: Rule) -> None:
        self.denoiser, self.gate = denoiser, gate
        self.layers = layers_of(denoiser, rule.site)
        self.course = Course(rule)
        self.end()

    def stand(self, undo: ExitStack) -> None:
        """Stands before the layers, until `undo` is closed."""
        for name, layer in self.layers.items():
            Sentry(layer, partial(self.call, name), self.gate).stand(undo)

    def compiled(self) -> str:
        """Returns the name of what is compiled around a layer, or nothing."""
        return compiled_around(self.denoiser, list(self.layers))

    def begin(self, rule: Rule, times: tuple[float, ...], gear: int) -> None:
        """A run has started; its first step may have gone through the layers already."""
        self.course.begin(rule, times, gear)

    def end(self) -> None:
        """Lets go of tensors."""
        self.course.end()
        self.history = History(self.course.rule.forecast.depth)
        self.holes: dict[Hashable, Any] = {}  # what a layer returned last, without its tensors
        self.counts: dict[Hashable, int] = {}  # how many tensors those are
        self.entered: dict[Hashable, torch.Size | None] = {}
        self.past: dict[Hashable, tuple[int, ...]] = {}
        self.place: tuple[int, int] | None = None

    def call(self, name: str, layer: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A layer was called."""
        if (here := self.gate.here()) is None:  # somebody calls the denoiser outside of a pipeline's loop
            return original(*args, **kwargs)
        step, branch = here
        leads = self.place != (step.index, branch)
        if leads:  # the first layer in this call of the denoiser
            self.place, self.times = (step.index, branch), Counter[str]()
            self.computes = self.course.decide(step, branch, lambda: self.signal(args, kwargs))
        key, shape = (branch, name, self.times[name]), leading(args, kwargs)
        self.times[name] += 1
        if not self.computes and self.fits(key, shape):
            return put_together(self.holes[key], self.forecasts(key))
        output = original(*args, **kwargs)
        found = self.keep(key, shape, output)
        if leads and branch == 0:
            self.course.made[-1] = True  # whatever was decided
            if found and self.computes:
                self.course.observe(found[0])
        return output

    def fits(self, key: Hashable, shape: torch.Size | None) -> bool:
        """Whether a layer was computed on such a shape, or on a batch of which one half is left out now."""
        known = self.entered.get(key)
        if self.gate.half and known and shape and known[0] == 2 * shape[0]:
            lines = [self.history.lines[key, number] for number in range(self.counts[key])]
            for line in lines:
                line.past = last_half(line.past, known[0])
                line.past_signal = [None] * len(line.past_signal)  # of both halves
            self.entered[key] = known = shape
            halved = put_together(self.holes[key], [line.past[0] for line in lines])
            self.holes[key] = taken_apart(halved)[0]
        return known is not None and known == shape

    def signal(self, args: Any, kwargs: Any) -> Tensor | None:
        """Returns what the policy reads."""
        x = entering(args, kwargs) if self.course.rule.signal == "input" else None
        return None if x is None else x.clone()

    def keep(self, key: Hashable, shape: torch.Size | None, output: Any) -> list[Tensor]:
        """Notes what a layer returned, and returns its tensors: of the half that is always computed."""
        assert self.course.step is not None
        if self.gate.half is False and shape:
            output, shape = last_half(output, shape[0]), torch.Size((shape[0] // 2, *shape[1:]))
        self.holes[key], found = taken_apart(output)
        if self.entered.get(key) != shape:  # the batch has another size now
            self.entered[key], self.past[key] = shape, ()
            for number in range(self.counts.get(key, 0)):
                self.history.drop((key, number))
        self.counts[key] = len(found)
        for number, tensor in enumerate(found):
            self.history.keep((key, number), None, tensor, self.course.step.x)
        self.past[key] = (self.course.step.index, *self.past[key])[: self.course.rule.forecast.depth]
        return found

    def forecasts(self, key: Hashable) -> list[Tensor]:
        """Returns what is used instead of the tensors that a layer returns."""
        assert self.course.step is not None
        forecast, step = self.course.rule.forecast, replace(self.course.step, past=self.past[key])
        keys = [(key, number) for number in range(self.counts[key])]
        return [forecast.combine(self.history.known(one, None, step.x), step) for one in keys]
