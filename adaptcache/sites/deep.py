"""The site `deep`: the inner part of a U-Net, below a skip connection.

At a skipped step the outermost layers run on the new latents, and everything deeper is replaced by the
forecast of what it hands to the first layer after it. How many layers are outermost is the rule's `head`:
with none, all that remains is the first convolution, the last layer on the way up and the last convolution.

References:
    | DeepCache (Ma et al., 2024), https://arxiv.org/abs/2312.00858
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from ..errors import AttachError
from ..forecasts.history import History
from ..schedule.rule import Rule
from ..step import entering
from .decision import Course
from .interceptor import Sentry
from .layers import compiled_around
from .outputs import blank, leading, put_together, taken_apart

__all__ = ["Deep", "deep_part"]


def members(block: nn.Module, kind: str) -> list[nn.Module]:
    """Returns the layers of a kind that a block has."""
    return list(getattr(block, kind, None) or ())


def layers(block: nn.Module) -> list[list[nn.Module]]:
    """Returns what runs for each skip connection of a block, in the order it runs."""
    rows = [members(block, kind) for kind in ("resnets", "attentions", "motion_modules")]
    return [[row[k] for row in rows if k < len(row)] for k in range(len(rows[0]))]


def deep_part(denoiser: nn.Module, head: int) -> list[nn.Module]:
    """Returns the modules below the skip connection number `head`, in the order they run."""
    ways = [getattr(denoiser, name, None) for name in ("down_blocks", "mid_block", "up_blocks")]
    if not all(isinstance(way, nn.Module) for way in ways):
        name = type(denoiser).__name__
        raise AttachError(f"the site 'deep' is the inner part of a U-Net, and {name} is none; use 'blocks'")
    down, middle, up = ways
    assert isinstance(down, nn.ModuleList) and isinstance(up, nn.ModuleList) and middle is not None
    units: list[tuple[nn.Module, list[nn.Module]]] = []
    for block in down:
        units += [
            (block, layer) for layer in [*layers(block), *([d] for d in members(block, "downsamplers"))]
        ]
    if head > len(units):
        raise AttachError(f"this U-Net has {len(units)} layers on its way down, {head} are to run: too many")
    units.append((middle, [middle]))
    for block in up:
        own = layers(block)
        own[-1] = own[-1] + members(block, "upsamplers")
        units += [(block, layer) for layer in own]
    deep = units[head : len(units) - head - 1]
    found: list[nn.Module] = []
    for block in (*down, middle, *up):
        inside = [layer for owner, layer in deep if owner is block]
        whole = len(inside) == sum(owner is block for owner, _ in units)
        found += [block] if whole and inside else [module for layer in inside for module in layer]
    return found


class Deep:
    """Skips the inner part of one U-Net by a rule; one decision a step, made at its first branch.

    Of the skipped modules only the last one's output is used: the others return zeros.
    """

    def __init__(self, denoiser: nn.Module, gate: Any, rule: Rule) -> None:
        self.denoiser, self.gate = denoiser, gate
        self.modules = deep_part(denoiser, rule.head)
        self.course = Course(rule)
        self.holes: dict[int, Any] = {}  # what a module returned last, without its tensors
        self.end()

    def stand(self, undo: ExitStack) -> None:
        """Stands before the modules, until `undo` is closed."""
        for number, module in enumerate(self.modules):
            Sentry(module, partial(self.call, number), self.gate).stand(undo)

    def compiled(self) -> str:
        """Returns the name of what is compiled around the modules, or nothing."""
        names = [name for name, module in self.denoiser.named_modules() if module in set(self.modules)]
        return compiled_around(self.denoiser, names)

    def begin(self, rule: Rule, times: tuple[float, ...], gear: int) -> None:
        """A run has started; its first step may have been computed already."""
        self.course.begin(rule, times, gear)

    def end(self) -> None:
        """Lets go of tensors."""
        self.course.end()
        self.history = History(self.course.rule.forecast.depth)
        self.past: dict[int, tuple[int, ...]] = {}  # by branch: one may begin late
        self.shapes: dict[int, torch.Size | None] = {}
        self.here: tuple[Any, int] | None = None
        self.skips = False

    def call(
        self, number: int, module: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """A module was called."""
        if number == 0:
            self.here = self.gate.here()
            self.skips = self.here is not None and not self.computes(args, kwargs)
        if self.here is None:  # somebody calls the denoiser outside of a pipeline's loop
            return original(*args, **kwargs)
        branch, last = self.here[1], number == len(self.modules) - 1
        if self.skips:
            return self.forecast(branch) if last else blank(self.holes[number])
        output = original(*args, **kwargs)
        self.holes[number], found = taken_apart(output)
        if last:
            assert self.course.step is not None
            self.history.keep(branch, None, found[0], self.course.step.x)
            if branch == 0:
                self.course.observe(found[0])
        return output

    def computes(self, args: Any, kwargs: Any) -> bool:
        """Whether the site is computed in this call of the denoiser."""
        assert self.here is not None
        step, branch = self.here
        x = entering(args, kwargs) if self.course.rule.signal == "input" else None
        says = self.course.decide(step, branch, lambda: None if x is None else x.clone())
        if self.shapes.get(branch) != leading(args, kwargs):  # or the batch has another size now
            self.history.drop(branch)
            self.past[branch], says = (), True
        if says:
            self.past[branch] = (step.index, *self.past.get(branch, ()))
            self.shapes[branch] = leading(args, kwargs)
            return True
        return False

    def forecast(self, branch: int) -> Any:
        """Returns what is used instead of the deep feature, as its module returns it."""
        assert self.course.step is not None
        step = replace(self.course.step, past=self.past[branch])
        known = self.history.known(branch, None, step.x)
        return put_together(
            self.holes[len(self.modules) - 1], [self.course.rule.forecast.combine(known, step)]
        )
