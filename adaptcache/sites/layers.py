"""The sites `attention`, `cross-attention`, `temporal-attention` and `mlp`: all layers of one type; and `encoder`.

The calls of each layer of the type are taken, in every block. At a skipped step each of them returns the
forecast of its own outputs; all around them runs as always. They decide together, once a step.

The layers of the site `encoder` are the blocks of a U-Net on its way down, and the middle one.

References:
    | Faster Diffusion (Li et al., 2023), https://arxiv.org/abs/2312.09608
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..schedule.rule import Rule
from ..step import entering
from .denoisers import find_layers
from .hook import Gate, SiteHook
from .outputs import first_shape, join_tensors, split_tensors, take_half

Key = tuple[int, str, int]  # a branch, a layer, and how often it was called in this branch before


class Layers(SiteHook):
    """Skips all layers of one type of one denoiser.

    What a dynamic policy looks at is what enters the first layer of a step's first branch, and what it
    observes is what leaves it. A layer that was never computed in a branch, or on other shapes, is.
    """

    def __init__(self, denoiser: nn.Module, gate: Gate, rule: Rule, only: str | None = None) -> None:
        found = find_layers(denoiser, "mlp" if rule.site == "tokens" else rule.site)
        super().__init__(denoiser, gate, rule, found if only is None else {only: found[only]})

    def on_run_end(self) -> None:
        super().on_run_end()
        self.place: tuple[int, int] | None = None  # step and branch

    def call(self, name: str, module: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if (here := self.gate.here()) is None:  # the denoiser is called outside of a pipeline's loop
            return original(*args, **kwargs)
        step, branch = here
        leads = self.place != (step.index, branch)
        if leads:  # the first layer in this call of the denoiser
            self.place, self.times = (step.index, branch), Counter[str]()
            self.computes = self.decision.decide(step, branch, lambda: self.read_signal(args, kwargs))
        key = (branch, name, self.times[name])
        self.times[name] += 1
        if not self.computes and self.fits(key, args, kwargs):
            return self.skip(key, original, args, kwargs)
        output = original(*args, **kwargs)
        found = self.learn(key, original, args, kwargs, output)
        if leads and branch == self.decision.lead:
            self.decision.made[-1] = True  # whatever was decided
            if found and self.computes:
                self.decision.observe(found[0], branch)
        return output

    def skip(self, key: Key, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Returns what a layer gives at a skipped step."""
        return self.forecast_output(key, self.entered(args, kwargs))

    def entered(self, args: Any, kwargs: Any) -> Tensor | None:
        """Returns what enters a layer, for forecasts that are made of it."""
        return entering(args, kwargs) if self.rule.forecast.keeps_latents else None

    def fits(self, key: Key, args: Any, kwargs: Any) -> bool:
        """Whether a layer was computed on such a shape, or on a batch of which one half is left out now."""
        known, shape = self.shapes.get(key), first_shape(args, kwargs)
        if self.gate.half and known and shape and known[0] == 2 * shape[0]:
            streams = [stream for name, stream in self.history.streams.items() if name[0] == key]  # type: ignore[index]
            for stream in streams:
                stream.past, stream.past_x = (take_half(rows, known[0]) for rows in (stream.past, stream.past_x))
                stream.past_signal = [None] * len(stream.past_signal)  # of both halves
            self.shapes[key] = shape
            halved = join_tensors(self.holes[key], [stream.past[0] for stream in streams])
            self.holes[key] = split_tensors(halved)[0]
        return shape is not None and self.knows(key, shape)

    def learn(self, key: Key, original: Callable[..., Any], args: Any, kwargs: Any, output: Any) -> list[Tensor]:
        """Notes what a layer returned, and returns its tensors: of the half that is always computed."""
        shape = first_shape(args, kwargs)
        if self.gate.half is False and shape:
            output, shape = take_half(output, shape[0]), torch.Size((shape[0] // 2, *shape[1:]))
        return self.keep_output(key, output, shape, self.entered(args, kwargs))
