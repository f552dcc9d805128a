"""The site `deep`: the inner part of a U-Net, below a skip connection.

At a skipped step the outermost layers run on the new latents, and everything deeper is replaced by the
forecast of what it hands to the first layer after it. How many layers are outermost is the rule's `head`:
with none, all that remains is the first convolution, the last layer on the way up and the last convolution.

References:
    | DeepCache (Ma et al., 2024), https://arxiv.org/abs/2312.00858
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from ..errors import AttachError
from ..schedule.rule import Rule
from .hook import Gate, SiteHook
from .outputs import fill_zeros, first_shape, split_tensors


def find_deep(denoiser: nn.Module, head: int) -> list[nn.Module]:
    """Returns the modules below the skip connection number `head`, in the order they run."""
    ways = [getattr(denoiser, name, None) for name in ("down_blocks", "mid_block", "up_blocks")]
    if not all(isinstance(way, nn.Module) for way in ways):
        name = type(denoiser).__name__
        raise AttachError(f"the site 'deep' is the inner part of a U-Net, and {name} is none; use 'blocks'")
    down, middle, up = ways
    assert isinstance(down, nn.ModuleList) and isinstance(up, nn.ModuleList) and middle is not None
    units: list[tuple[nn.Module, list[nn.Module]]] = []  # what runs for each skip connection, with its block
    for block in down:
        units += [(block, layer) for layer in [*_layers(block), *([d] for d in _members(block, "downsamplers"))]]
    if head > len(units):
        raise AttachError(f"this U-Net has {len(units)} layers on its way down, {head} are to run: too many")
    units.append((middle, [middle]))
    for block in up:
        own = _layers(block)
        own[-1] = own[-1] + _members(block, "upsamplers")
        units += [(block, layer) for layer in own]
    deep = units[head : len(units) - head - 1]
    found: list[nn.Module] = []
    for block in (*down, middle, *up):
        inside = [layer for owner, layer in deep if owner is block]
        whole = len(inside) == sum(owner is block for owner, _ in units)
        found += [block] if whole and inside else [module for layer in inside for module in layer]
    return found


def _members(block: nn.Module, kind: str) -> list[nn.Module]:
    return list(getattr(block, kind, None) or ())


def _layers(block: nn.Module) -> list[list[nn.Module]]:
    """Returns what runs for each skip connection of a block, in the order it runs."""
    rows = [_members(block, kind) for kind in ("resnets", "attentions", "motion_modules")]
    return [[row[k] for row in rows if k < len(row)] for k in range(len(rows[0]))]


class Deep(SiteHook):
    """Skips the inner part of one U-Net.

    Of the skipped modules only the last one's output is used: the others return zeros.
    """

    def __init__(self, denoiser: nn.Module, gate: Gate, rule: Rule) -> None:
        names = {module: name for name, module in denoiser.named_modules()}
        parts = {names[module]: module for module in find_deep(denoiser, rule.head)}
        self.first, self.last = (list(parts)[end] for end in (0, -1))
        super().__init__(denoiser, gate, rule, parts)

    def on_run_end(self) -> None:
        super().on_run_end()
        self.branch: int | None = None  # of the call under way
        self.skips = False

    def call(self, name: str, module: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if name == self.first:
            here = self.gate.here()
            self.branch, self.skips = None if here is None else here[1], False
            if here is not None:
                self.shape = first_shape(args, kwargs)
                computes = self.decision.decide(*here, lambda: self.read_signal(args, kwargs))
                self.skips = not computes and self.knows(self.branch, self.shape)
        if self.branch is None:  # the denoiser is called outside of a pipeline's loop
            return original(*args, **kwargs)
        if self.skips:
            return self.forecast_output(self.branch) if name == self.last else fill_zeros(self.holes[name])
        output = original(*args, **kwargs)
        if name != self.last:
            self.holes[name] = split_tensors(output)[0]
            return output
        found = self.keep_output(self.branch, output, self.shape)
        self.decision.observe(found[0], self.branch)
        return output
