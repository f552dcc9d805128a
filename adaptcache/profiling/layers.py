"""How far the outputs of each type of layer are from those of the steps before: SmoothCache's curves.

References:
    | SmoothCache (Liu et al., 2024), https://arxiv.org/abs/2411.10510
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..engines.diffusers.gate import Gate
from ..engines.diffusers.watch import denoisers_of
from ..errors import AttachError
from ..runs import Call, Prompt
from ..sites.denoisers import find_layers
from ..sites.interceptor import ModuleInterceptor, find_compiled
from ..sites.outputs import split_tensors
from .reference import Recorder, twin

__all__ = ["layer_errors"]

TINY = 1e-30


class Curves:
    """Watches the layers of some types in full runs; sums stay on the device until they are asked for.

    Arguments:
        gate: Knows the step.
        longest: How many steps back outputs are compared.
    """

    def __init__(self, gate: Gate, longest: int) -> None:
        self.gate, self.longest = gate, longest
        self.kept: dict[Hashable, list[tuple[int, Tensor]]] = defaultdict(list)
        self.sums: dict[tuple[str, int, int], list[Tensor]] = defaultdict(list)
        self.times: dict[Hashable, int] = {}

    def call(
        self, site: str, name: str, layer: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """A layer was called: compares what it returns with what it returned before."""
        output = original(*args, **kwargs)
        if (here := self.gate.here()) is None:
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

    def end(self) -> None:
        """A run is over: lets go of outputs."""
        self.kept.clear()
        self.times.clear()


def layer_errors(
    pipe: Any,
    call: Call,
    prompts: Sequence[Prompt],
    sites: Sequence[str],
    *,
    longest: int = 3,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, np.ndarray]:
    """Runs a pipeline in full and measures the error of reuse of each type of layer.

    Arguments:
        pipe: A diffusers pipeline; it is not changed.
        call: How to call it.
        prompts: What to run it on, one at a time.
        sites: Types of layers; those the denoiser does not have are left out.
        longest: How many steps an output may be reused for: L.
        progress: Told the number of prompts done.

    Returns:
        By site, the relative L1 error with shape (N, L) of an output of step i at step i + 1 + k: the mean
        over layers, branches and prompts. Infinite where there is no such step.
    """
    own = twin(pipe)
    found = [(site, d, find_layers(d, site)) for site in sites for d in denoisers_of(own)]
    if not any(layers for _, _, layers in found):
        name = type(denoisers_of(own)[0]).__name__
        raise AttachError(f"{name} has no layers for the site {' or '.join(map(repr, sites))}")
    for _, denoiser, layers in found:
        if around := find_compiled(denoiser, list(layers)):
            raise AttachError(f"{around} is compiled as a whole: its layers cannot be watched")
    curves, steps = None, 0
    for number, prompt in enumerate(prompts):
        recorder = Recorder(first=number)
        with closing(Gate(own, recorder).open()) as gate, ExitStack() as undo:
            curves = curves or Curves(gate, longest)
            curves.gate = gate
            for site, _, layers in found:
                for name, layer in layers.items():
                    ModuleInterceptor.install(layer, gate, partial(curves.call, site, name), undo)
            call(own, [prompt], number)
        curves.end()
        steps = len(recorder.run.times)
        progress(number + 1)
    assert curves is not None
    errors = {site: np.full((steps, longest), np.inf) for site, _, layers in found if layers}
    for (site, index, back), values in curves.sums.items():
        errors[site][index, back] = float(torch.stack(values).mean())
    return errors
