"""The site `blocks`: what the blocks of a denoiser add to its hidden states: the image, often the text.

The calls of each block are taken. At a skipped step all of them let their inputs through, and the last one
adds the forecast of what they would have added. Around them the denoiser runs as always.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from torch import Tensor, nn

from ..distributed import splits
from ..errors import AttachError
from ..policies.base import Policy
from ..schedule.rule import Rule
from ..step import Step
from .denoisers import IMAGE, DenoiserSpec, find_spec
from .hook import Gate, SiteHook
from .interceptor import is_compiled

Streams: TypeAlias = dict[str, Tensor]


@dataclass
class DenoiserCall:
    """One call of the denoiser, while it goes through the blocks."""

    step: Step
    branch: int  # which call of this step it is
    raw: Streams  # what entered the first block
    entered: Streams = field(default_factory=dict)  # what entered the site
    tail: Streams = field(default_factory=dict)  # what entered the blocks after it
    skips: bool = False  # whether the site is skipped


class Blocks(SiteHook):
    """Skips a group of neighbouring blocks of one denoiser: all, those in the middle, or one.

    A branch that was never computed is, whatever was decided.
    """

    def __init__(self, denoiser: nn.Module, gate: Gate, rule: Rule, only: int | None = None) -> None:
        self.spec = find_spec(denoiser)
        self.blocks: list[nn.Module] = [b for name in self.spec.blocks for b in getattr(denoiser, name)]
        if any(map(splits, self.blocks)):
            raise AttachError(
                f"context parallelism splits the sequence in front of a block of {type(denoiser).__name__}, "
                "which the site 'blocks' would skip; use the site 'step'"
            )
        count = len(self.blocks)
        low, high = rule.span or (0.0, 1.0)
        self.first, self.last = rule.head or round(low * count), (round(high * count) - rule.tail) - 1
        if only is not None:
            self.first = self.last = only
        if self.last < self.first:
            kept = f"{rule.head} + {rule.tail} of {count} blocks always run"
            kept = f"the span {rule.span} has none of {count} blocks" if rule.span else kept
            raise AttachError(f"{kept}: nothing is left to skip")
        # Some policies check a skip by what blocks after it make of the forecast.
        self.verifies = rule.tail > 0 and type(rule.policy).verify is not Policy.verify
        numbers = set(range(self.first, self.last + 1))
        numbers |= {self.last + 1, count - 1} if self.verifies else set()
        numbers |= {0} if rule.signal == "residual" else set()
        self.lowest = min(numbers)
        self.arity: dict[int, int] = {}  # how many tensors a block returns; 0: one, not in a tuple
        super().__init__(denoiser, gate, rule, {str(number): self.blocks[number] for number in sorted(numbers)})

    def compiled(self) -> str:
        return type(self.denoiser).__name__ if is_compiled(self.denoiser) else ""

    def on_run_end(self) -> None:
        super().on_run_end()
        self.now: DenoiserCall | None = None

    def call(self, name: str, block: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        number, streams = int(name), find_streams(self.spec, block, args, kwargs)
        if number == self.lowest:
            here = self.gate.here()
            self.now = None if here is None else DenoiserCall(*here, streams)
        if (now := self.now) is None:  # the denoiser is called outside of a pipeline's loop
            return original(*args, **kwargs)
        if number == self.first:
            now.entered = streams
            now.skips = not self.computes(now, block, args, kwargs)
        if now.skips and self.first <= number <= self.last:
            leaving = self.forecasts(now, streams) if number == self.last else streams
            return pack_streams(self.spec, leaving, self.arity[number])
        if number == self.last + 1:
            now.tail = streams
        output = original(*args, **kwargs)
        self.arity[number] = len(output) if isinstance(output, tuple) else 0
        if number == self.last:
            self.learn(now, unpack_streams(self.spec, output))
        if self.verifies and number == len(self.blocks) - 1:
            self.check(now, added_streams(now.tail, unpack_streams(self.spec, output))[IMAGE])
        return output

    def computes(self, now: DenoiserCall, block: nn.Module, args: Any, kwargs: Any) -> bool:
        """Whether the site is computed in this call of the denoiser."""
        says = self.decision.decide(now.step, now.branch, lambda: self.signal(now, block, args, kwargs))
        return says or not self.knows(now.branch, now.entered[IMAGE].shape)

    def signal(self, now: DenoiserCall, block: nn.Module, args: Any, kwargs: Any) -> Tensor | None:
        """Returns what the policy reads."""
        x = now.entered[IMAGE]
        match self.rule.signal:
            case "input":
                return x.clone()
            case "residual":
                return added_streams(now.raw, now.entered)[IMAGE]  # the text may have been put before the image
            case "modulated":
                if self.rule.head or not self.spec.modulated:
                    raise AttachError(
                        "the signal 'modulated' is known for Flux, SD3 and HunyuanVideo, without a head; use 'input'"
                    )
                return modulate(x, self.spec, block, args, kwargs)
        return None

    def learn(self, now: DenoiserCall, output: Streams) -> None:
        """Notes what the site added."""
        found = output if self.rule.output else added_streams(now.entered, output)
        if IMAGE not in found:
            raise AttachError(
                f"the blocks of {type(self.denoiser).__name__} do not return what enters them, so there is no site "
                "'blocks'; use the site 'step'"
            )
        self.keep(now.branch, found, now.entered[IMAGE].shape, now.entered)
        self.decision.observe(found[IMAGE], now.branch)

    def forecasts(self, now: DenoiserCall, through: Streams) -> Streams:
        """Returns what leaves the site: what went through it, and the forecast of what it adds."""
        self.gate.skipped()
        leaving = dict(through)
        for name, value in through.items():
            if (now.branch, name) in self.history.streams:
                extra = self.forecast(now.branch, name, now.entered[name])
                # What is added between blocks (by a ControlNet) is in the forecast already.
                base = now.entered[name] if now.entered[name].shape == value.shape else value
                leaving[name] = extra if self.rule.output else add_stream(base, extra)
        return leaving

    def check(self, now: DenoiserCall, found: Tensor) -> None:
        """Compares what the tail added with its forecast, or notes it where the site was computed."""
        if not now.skips:
            self.history.keep((now.branch, "tail"), now.tail[IMAGE], found, self.step.x)
        elif now.branch == self.decision.lead:
            step = replace(self.step, past=self.past[now.branch])
            expected = self.forecast(now.branch, "tail", now.tail[IMAGE])
            self.rule.policy.verify(self.decision.state, step, found, expected)


@functools.cache
def parameters_of(kind: Any) -> list[str]:
    """Returns the names of the arguments that modules of a class take."""
    return list(inspect.signature(kind.forward).parameters)[1:]


def find_streams(spec: DenoiserSpec, block: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Streams:
    """Returns the streams among the arguments of a block."""
    kind: Any = type(block)
    given = {**dict(zip(parameters_of(kind), args, strict=False)), **kwargs}
    named = {name: given.get(spec.named.get(name, name)) for name in spec.streams}
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


def unpack_streams(spec: DenoiserSpec, output: Any) -> Streams:
    """Returns the streams that a block returned."""
    if isinstance(output, Tensor):
        return {IMAGE: output}
    pairs = zip(spec.streams, output, strict=False)
    return {name: value for name, value in pairs if isinstance(value, Tensor)}


def pack_streams(spec: DenoiserSpec, streams: Streams, arity: int) -> Any:
    """Returns streams the way a block returns them: as so many, or the image alone if that is 0."""
    return tuple(streams.get(name) for name in spec.streams[:arity]) if arity else streams[IMAGE]


def added_streams(entered: Streams, left: Streams) -> Streams:
    """Returns what was added to each stream; of a sequence that the text was put before, the end."""
    sums = {}
    for name, value in left.items():
        if (before := entered.get(name)) is None:
            continue
        if value.ndim == 3 and value.shape[1] > before.shape[1]:
            value = value[:, -before.shape[1] :]
        if value.shape[1:] == before.shape[1:]:  # one text may serve several images
            sums[name] = value - before
    return sums


def add_stream(value: Tensor, extra: Tensor) -> Tensor:
    """Returns a stream with what is added to it; of a sequence that the text was put before, to the end."""
    before = value.shape[1] - extra.shape[1] if value.ndim == 3 else 0
    if not before:
        return value + extra
    total = value.clone()
    total[:, before:] += extra
    return total


def modulate(
    x: Tensor, spec: DenoiserSpec, block: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Tensor:
    """Returns the image after a block's first normalisation, modulated by the time."""
    bound = inspect.signature(type(block).forward).bind(block, *args, **kwargs).arguments
    assert isinstance(block.norm1, nn.Module)
    parts = block.norm1(x, **{name: bound[own] for name, own in spec.modulated.items()})
    value: Tensor = parts[0] if isinstance(parts, tuple) else parts
    return value
