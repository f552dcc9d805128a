"""What goes through the blocks of a denoiser: the image, often the text, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..distributed import splits
from ..errors import AttachError
from ..forecasts.history import History
from ..policies.base import Policy
from ..schedule.rule import Rule
from ..step import Step
from .decision import Course
from .interceptor import Sentry
from .models import IMAGE, Model, model_of

Streams: TypeAlias = dict[str, Tensor]


@dataclass
class Pass:
    """One call of the denoiser, while it goes through the blocks.

    Arguments:
        step: Where the run is, with the signal.
        branch: Which call of this step it is.
        raw: What entered the first block.
        entered: What entered the site.
        tail: What entered the blocks after it.
        skips: Whether the site is skipped.
    """

    step: Step
    branch: int
    raw: Streams
    entered: Streams = field(default_factory=dict)
    tail: Streams = field(default_factory=dict)
    skips: bool = False


def streams_of(model: Model, block: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Streams:
    """Returns the streams among the arguments of a block."""
    names = list(inspect.signature(type(block).forward).parameters)[1:]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return {name: given[name] for name in model.streams if isinstance(given.get(name), Tensor)}


def returned(model: Model, output: Any) -> Streams:
    """Returns the streams that a block returned."""
    if isinstance(output, Tensor):
        return {IMAGE: output}
    pairs = zip(model.streams, output, strict=False)
    return {name: value for name, value in pairs if isinstance(value, Tensor)}


def as_returned(model: Model, streams: Streams, arity: int) -> Any:
    """Returns streams the way a block returns them: as so many, or the image alone if that is 0."""
    if not arity:
        return streams[IMAGE]
    return tuple(streams.get(name) for name in model.streams[:arity])


def added(entered: Streams, left: Streams) -> Streams:
    """Returns what was added to each stream; of a sequence that the text was put before, the end."""
    sums = {}
    for name, value in left.items():
        if (before := entered.get(name)) is None:
            continue
        if value.ndim == 3 and value.shape[1] > before.shape[1]:
            value = value[:, -before.shape[1] :]
        if value.shape == before.shape:
            sums[name] = value - before
    return sums


def summed(value: Tensor, extra: Tensor) -> Tensor:
    """Returns a stream with what is added to it; of a sequence that the text was put before, to the end."""
    before = value.shape[1] - extra.shape[1] if value.ndim == 3 else 0
    if not before:
        return value + extra
    total = value.clone()
    total[:, before:] += extra
    return total


def modulated(
    x: Tensor, model: Model, block: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Tensor:
    """Returns the image after a block's first normalisation, modulated by the time."""
    bound = inspect.signature(type(block).forward).bind(block, *args, **kwargs).arguments
    assert isinstance(block.norm1, nn.Module)
    parts = block.norm1(x, **{name: bound[own] for name, own in model.modulated.items()})
    value: Tensor = parts[0] if isinstance(parts, tuple) else parts
    return value


# The site `blocks`: what the blocks of a denoiser add to its hidden states.
#
# A guard stands before each block. At a skipped step all of them let their inputs through, and the last one
# adds the forecast of what they would have added. Around them the denoiser runs as always.
#
# The class is longer than ours are: one call of the denoiser is followed through it, block by block.


class Blocks:
    """Skips a group of neighbouring blocks of one denoiser by a rule: all, or those in the middle.

    One decision a step, made at its first branch: the others follow. A branch that was never computed is.
    """

    def __init__(self, denoiser: nn.Module, gate: Any, rule: Rule) -> None:
        self.denoiser, self.gate, self.rule, self.model = denoiser, gate, rule, model_of(denoiser)
        self.blocks: list[nn.Module] = [b for name in self.model.blocks for b in getattr(denoiser, name)]
        if any(map(splits, self.blocks)):
            raise AttachError(
                f"context parallelism splits the sequence in front of a block of {type(denoiser).__name__}, "
                "which the site 'blocks' would skip; use the site 'step'"
            )
        count = len(self.blocks)
        low, high = rule.span or (0.0, 1.0)
        self.first, self.last = rule.head or round(low * count), (round(high * count) - rule.tail) - 1
        if self.last < self.first:
            kept = f"{rule.head} + {rule.tail} of {count} blocks always run"
            kept = f"the span {rule.span} has none of {count} blocks" if rule.span else kept
            raise AttachError(f"{kept}: nothing is left to skip")
        # Some policies check a skip by what blocks after it make of the forecast.
        self.verifies = rule.tail > 0 and type(rule.policy).verify is not Policy.verify
        numbers = set(range(self.first, self.last + 1))
        numbers |= {self.last + 1, count - 1} if self.verifies else set()
        self.numbers = sorted(numbers | ({0} if rule.signal == "residual" else set()))
        self.course = Course(rule)
        self.end()
        self.arity: dict[int, int] = {}  # how many tensors a block returns; 0: one, not in a tuple

    def stand(self, undo: ExitStack) -> None:
        """Stands before the blocks, until `undo` is closed."""
        for number in self.numbers:
            Sentry(self.blocks[number], partial(self.call, number), self.gate).stand(undo)

    def compiled(self) -> str:
        """Returns the name of what is compiled around the blocks, or nothing."""
        return type(self.denoiser).__name__ if Sentry.compiled(self.denoiser) else ""

    def begin(self, rule: Rule, times: tuple[float, ...], gear: int) -> None:
        """A run has started; its first step may have gone through the blocks already."""
        self.rule = rule
        self.course.begin(rule, times, gear)

    def end(self) -> None:
        """Lets go of tensors."""
        forecast = self.rule.forecast
        self.course.end()
        self.history = History(forecast.depth, forecast.keeps_latents)
        self.past: dict[int, tuple[int, ...]] = {}  # by branch: one may begin late
        self.shapes: dict[int, torch.Size] = {}
        self.now: Pass | None = None

    def call(
        self, number: int, block: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """A block was called."""
        if number == self.numbers[0]:
            here = self.gate.here()
            streams = streams_of(self.model, block, args, kwargs)
            self.now = None if here is None else Pass(here[0], here[1], streams)
        if (now := self.now) is None:  # somebody calls the denoiser outside of a pipeline's loop
            return original(*args, **kwargs)
        if number == self.first:
            now.entered = streams_of(self.model, block, args, kwargs)
            now.skips = not self.computes(now, block, args, kwargs)
        if now.skips and self.first <= number <= self.last:
            through = streams_of(self.model, block, args, kwargs)
            leaving = self.forecast(now, through) if number == self.last else through
            return as_returned(self.model, leaving, self.arity[number])
        if number == self.last + 1:
            now.tail = streams_of(self.model, block, args, kwargs)
        output = original(*args, **kwargs)
        self.arity[number] = len(output) if isinstance(output, tuple) else 0
        if number == self.last:
            self.learn(now, returned(self.model, output))
        if self.verifies and number == len(self.blocks) - 1:
            self.check(now, added(now.tail, returned(self.model, output))[IMAGE])
        return output

    def computes(self, now: Pass, block: nn.Module, args: Any, kwargs: Any) -> bool:
        """Whether the site is computed in this call of the denoiser."""
        index = now.step.index
        says = self.course.decide(now.step, now.branch, lambda: self.signal(now, block, args, kwargs))
        assert self.course.step is not None
        now.step = replace(self.course.step, past=self.past.get(now.branch, ()))
        shape = now.entered[IMAGE].shape
        known = (now.branch, IMAGE) in self.history.lines and self.shapes.get(now.branch) == shape
        if not known:  # or the batch has another size now
            for name in now.entered:
                self.history.drop((now.branch, name))
            self.history.drop((now.branch, "tail"))
            now.step = replace(now.step, past=())
        if says or not known:
            self.shapes[now.branch] = shape
            self.past[now.branch] = (index, *now.step.past)
        return says or not known

    def signal(self, now: Pass, block: nn.Module, args: Any, kwargs: Any) -> Tensor | None:
        """Returns what the policy reads."""
        x = now.entered[IMAGE]
        match self.rule.signal:
            case "input":
                return x.clone()
            case "residual":
                return x - now.raw[IMAGE]
            case "modulated":
                if self.rule.head or not self.model.modulated:
                    raise AttachError(
                        "the signal 'modulated' is known for Flux, SD3 and HunyuanVideo, without a head; "
                        "use 'input'"
                    )
                return modulated(x, self.model, block, args, kwargs)
        return None

    def learn(self, now: Pass, output: Streams) -> None:
        """Notes what the site added."""
        found = output if self.rule.output else added(now.entered, output)
        for name, residual in found.items():
            key = (now.branch, name)
            if key not in self.history.lines:
                self.history.enter(key, now.entered[name])
            self.history.keep(key, now.entered[name], residual, now.step.x)
        if now.branch == 0:
            self.course.observe(found[IMAGE])

    def forecast(self, now: Pass, through: Streams) -> Streams:
        """Returns what leaves the site: what went through it, and the forecast of what it adds."""
        self.gate.skipped()
        leaving = {}
        for name, value in through.items():
            leaving[name] = value
            if (key := (now.branch, name)) in self.history.lines:
                known = self.history.known(key, now.entered[name], now.step.x)
                extra = self.rule.forecast.combine(known, now.step)
                leaving[name] = extra if self.rule.output else summed(value, extra)
        return leaving

    def check(self, now: Pass, found: Tensor) -> None:
        """Compares what the tail added with its forecast, or notes it where the site was computed."""
        key = (now.branch, "tail")
        if not now.skips:
            if key not in self.history.lines:
                self.history.enter(key, now.tail[IMAGE])
            self.history.keep(key, now.tail[IMAGE], found, now.step.x)
        elif now.branch == 0:
            known = self.history.known(key, now.tail[IMAGE], now.step.x)
            self.rule.policy.verify(
                self.course.state, now.step, found, self.rule.forecast.combine(known, now.step)
            )
