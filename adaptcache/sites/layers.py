"""The sites `attention`, `cross-attention`, `temporal-attention` and `mlp`: all layers of one type; and `encoder`.

The calls of each layer of the type are taken, in every block. At a skipped step each of them returns the
forecast of its own outputs; all around them runs as always. They decide together, once a step.

The layers of the site `encoder` are the blocks of a U-Net on its way down, and the middle one.

References:
    | Faster Diffusion (Li et al., 2023), https://arxiv.org/abs/2312.09608
"""

from collections import Counter
from collections.abc import Callable, Hashable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..schedule.rule import Rule
from .denoisers import find_layers
from .hook import Gate, SiteHook
from .interceptor import ModuleInterceptor, find_compiled
from .outputs import first_shape, join_tensors, split_tensors, take_half


class Layers(SiteHook):
    """Skips all layers of one type of one denoiser.

    What a dynamic policy looks at is what enters the first layer of a step's first branch, and what it
    observes is what leaves it. A layer that was never computed in a branch, or on other shapes, is.
    """

    def __init__(self, denoiser: nn.Module, gate: Gate, rule: Rule, only: str | None = None) -> None:
        found = find_layers(denoiser, rule.site)
        self.layers = found if only is None else {only: found[only]}
        super().__init__(denoiser, gate, rule)

    def install(self, undo: ExitStack) -> None:
        for name, layer in self.layers.items():
            ModuleInterceptor.install(layer, self.gate, partial(self.call, name), undo, shared=False)

    def compiled(self) -> str:
        return find_compiled(self.denoiser, self.layers)

    def on_run_end(self) -> None:
        super().on_run_end()
        self.place: tuple[int, int] | None = None  # step and branch

    def call(self, name: str, layer: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A layer was called."""
        if (here := self.gate.here()) is None:  # the denoiser is called outside of a pipeline's loop
            return original(*args, **kwargs)
        step, branch = here
        leads = self.place != (step.index, branch)
        if leads:  # the first layer in this call of the denoiser
            self.place, self.times = (step.index, branch), Counter[str]()
            self.computes = self.decision.decide(step, branch, lambda: self.read_signal(args, kwargs))
        key, shape = (branch, name, self.times[name]), first_shape(args, kwargs)
        self.times[name] += 1
        if not self.computes and self.fits(key, shape):
            return self.forecast_output(key)
        output = original(*args, **kwargs)
        found = self.learn(key, shape, output)
        if leads and branch == 0:
            self.decision.made[-1] = True  # whatever was decided
            if found and self.computes:
                self.decision.observe(found[0])
        return output

    def fits(self, key: Hashable, shape: torch.Size | None) -> bool:
        """Whether a layer was computed on such a shape, or on a batch of which one half is left out now."""
        known = self.shapes.get(key)
        if self.gate.half and known and shape and known[0] == 2 * shape[0]:
            streams = [stream for name, stream in self.history.streams.items() if name[0] == key]  # type: ignore[index]
            for stream in streams:
                stream.past = take_half(stream.past, known[0])
                stream.past_signal = [None] * len(stream.past_signal)  # of both halves
            self.shapes[key] = shape
            halved = join_tensors(self.holes[key], [stream.past[0] for stream in streams])
            self.holes[key] = split_tensors(halved)[0]
        return shape is not None and self.knows(key, shape)

    def learn(self, key: Hashable, shape: torch.Size | None, output: Any) -> list[Tensor]:
        """Notes what a layer returned, and returns its tensors: of the half that is always computed."""
        if self.gate.half is False and shape:
            output, shape = take_half(output, shape[0]), torch.Size((shape[0] // 2, *shape[1:]))
        return self.keep_output(key, output, shape)
