"""How far the outputs of each type of layer are from those of the steps before: SmoothCache's curves.

References:
    | SmoothCache (Liu et al., 2024), https://arxiv.org/abs/2411.10510
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import AttachError
from ..hooks import StepHook
from ..runs import PromptSet, Setup
from ..sites.denoisers import find_layers
from ..sites.interceptor import ModuleInterceptor, find_compiled
from ..sites.outputs import split_tensors
from ..step import TINY


class LayerHook(StepHook):
    """Compares the outputs of layers of some types in full runs; sums stay on the device until they are asked for.

    Arguments:
        sites: The types of layers.
        longest: How many steps back outputs are compared.
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
        self,
        gate: Any,
        site: str,
        name: str,
        layer: nn.Module,
        original: Callable[..., Any],
        args: Any,
        kwargs: Any,
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
    """Runs a pipeline in full and measures the error of reuse of each type of layer.

    Arguments:
        prompts: What to run it on, one at a time.
        sites: Types of layers; those the denoiser does not have are left out.
        longest: How many steps an output may be reused for: L.

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
