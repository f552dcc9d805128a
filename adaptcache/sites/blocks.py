"""The site `blocks`: what the blocks of a denoiser add to its hidden states.

A guard stands before each block. At a skipped step all of them let their inputs through, and the last one
adds the forecast of what they would have added. Around them the denoiser runs as always.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..clock import Step
from ..errors import AttachError
from ..forecasts.history import History
from ..gate import Gate
from ..gate.watch import Guard
from ..schedule import Rule
from .models import IMAGE, model_of
from .sentry import Sentry
from .streams import Pass, Streams, added, as_returned, returned, streams_of

__all__ = ["Blocks"]


class Blocks:
    """Skips the blocks of one denoiser by a rule.

    One decision a step, made at its first branch: the others follow. A branch that was never computed is.
    """

    def __init__(self, denoiser: nn.Module, gate: Gate, rule: Rule) -> None:
        if Guard.compiled(denoiser):
            raise AttachError(
                f"this {type(denoiser).__name__} is compiled as a whole: nothing can be skipped inside of "
                "a graph; compile its blocks (compile_repeated_blocks), or use the site 'step'"
            )
        self.gate, self.rule, self.model = gate, rule, model_of(denoiser)
        self.blocks: list[nn.Module] = [b for name in self.model.blocks for b in getattr(denoiser, name)]
        self.first, self.last = rule.head, len(self.blocks) - 1 - rule.tail
        if self.last < self.first:
            raise AttachError(
                f"{rule.head} + {rule.tail} of {len(self.blocks)} blocks always run: nothing is left to skip"
            )
        self.gear = 0
        self.state: Any = None
        self.now: Pass | None = None
        self.seen: tuple[Step, Tensor] | None = None  # of the first step, where it came before `begin`
        self.past: tuple[int, ...] = ()
        self.end()
        self.arity: dict[int, int] = {}  # how many tensors a block returns; 0: one, not in a tuple

    def stand(self, undo: ExitStack) -> None:
        """Stands before the blocks, until `undo` is closed."""
        if any(Sentry.of(block) for block in self.blocks):
            raise AttachError("the blocks of this denoiser are attached already; close() that handle first")
        for number, block in enumerate(self.blocks):
            Sentry(block, partial(self.call, number)).stand(undo)

    def begin(self, rule: Rule, times: tuple[float, ...], gear: int) -> None:
        """A run has started; its first step may have gone through the blocks already."""
        self.rule, self.gear, self.state = rule, gear, rule.policy.init(times)
        if self.seen is not None:
            self.rule.policy.observe(self.state, *self.seen)

    def end(self) -> None:
        """Lets go of tensors."""
        forecast = self.rule.forecast
        self.history, self.past = History(forecast.depth, forecast.keeps_latents), ()
        self.state, self.now, self.seen = None, None, None

    def call(
        self, number: int, block: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """A block was called."""
        if number == 0:
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
        if number == len(self.blocks) - 1 and self.rule.tail:
            self.check(now, added(now.tail, returned(self.model, output))[IMAGE])
        return output

    def computes(self, now: Pass, block: nn.Module, args: Any, kwargs: Any) -> bool:
        """Whether the site is computed in this call of the denoiser."""
        index, first = now.step.index, now.branch == 0
        if first:
            signal = self.signal(now, block, args, kwargs)
            self.step = replace(now.step, past=self.past, gear=self.gear, x=signal)
            self.step = replace(now.step, past=self.past, gear=self.gear, x=signal)
            # The first step has no past, and an expert that takes over in the middle has none of its own.
            self.computed = not self.past or self.rule.policy.compute(self.state, self.step)
            if self.computed:
                self.past = (index, *self.past)
        now.step = self.step
        line = self.history.lines.get((now.branch, IMAGE))
        known = line is not None and bool(line.past) and line.past[0].shape == now.entered[IMAGE].shape
        return self.computed or not known

    def signal(self, now: Pass, block: nn.Module, args: Any, kwargs: Any) -> Tensor | None:
        """Returns what the policy reads."""
        x = now.entered[IMAGE]
        match self.rule.signal:
            case "input":
                return x.clone()
            case "residual":
                return x - now.raw[IMAGE]
            case "modulated":
                bound = inspect.signature(type(block).forward).bind(block, *args, **kwargs).arguments
                norm = self.modulation(block)
                parts = norm(x, **{name: bound[own] for name, own in self.model.modulated.items()})
                value: Tensor = parts[0] if isinstance(parts, tuple) else parts
                return value
        return None

    def modulation(self, block: nn.Module) -> Callable[..., Any]:
        """Returns the normalisation whose result is the modulated input."""
        if not self.model.modulated or self.rule.head:
            raise AttachError(
                "the signal 'modulated' is known for Flux, SD3 and HunyuanVideo, without a head; use 'input'"
            )
        norm = block.norm1
        assert isinstance(norm, nn.Module)
        return norm

    def learn(self, now: Pass, output: Streams) -> None:
        """Notes what the site added."""
        residuals = added(now.entered, output)
        for name, residual in residuals.items():
            key = (now.branch, name)
            if key not in self.history.lines:
                self.history.enter(key, now.entered[name])
            self.history.keep(key, now.entered[name], residual, now.step.x)
        if now.branch == 0 and now.step.index == 0 and not now.step.times:
            self.seen = now.step, residuals[IMAGE]
        elif now.branch == 0:
            self.rule.policy.observe(self.state, now.step, residuals[IMAGE])

    def forecast(self, now: Pass, through: Streams) -> Streams:
        """Returns what leaves the site: what went through it, and the forecast of what it adds."""
        self.gate.skipped()
        leaving = {}
        for name, value in through.items():
            leaving[name] = value
            if (key := (now.branch, name)) in self.history.lines:
                known = self.history.known(key, now.entered[name], now.step.x)
                extra = self.rule.forecast.combine(known, now.step)
                before = value.shape[1] - extra.shape[1] if value.ndim == 3 else 0
                if before:  # text and image in one sequence: the image comes last
                    leaving[name] = value.clone()
                    leaving[name][:, before:] += extra
                else:
                    leaving[name] = value + extra
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
            self.rule.policy.verify(self.state, now.step, found, self.rule.forecast.combine(known, now.step))
