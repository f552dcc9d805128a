"""What a gate knows of the run it is in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..agreement import Groups
from .standin import StandIns

__all__ = ["Run"]


@dataclass
class Run:
    """One run, from `set_timesteps` to the last step.

    Arguments:
        thread: Whose run it is.
        taken: How many steps each scheduler has taken, by id; the pipeline's own comes first.
        times: The grid with shape (N,); empty before the first step.
        past: The numbers of the computed steps, newest first.
        decided: Whether the denoiser is called, by step.
        calls: Whether a denoiser call was made, by step and branch.
        groups: The process groups that run the denoiser together.
        sides: How many calls of ControlNets this step had.
        outputs: What branches returned last.
        graph: Whether gradients are kept through the run: what the scheduler landed on wants them.
    """

    thread: int
    taken: dict[int, int]
    times: tuple[float, ...] = ()
    past: tuple[int, ...] = ()
    decided: list[bool] = field(default_factory=list)
    calls: list[list[bool]] = field(default_factory=list)
    groups: Groups = ()
    sides: int = 0
    outputs: StandIns = field(default_factory=StandIns)
    graph: bool = False

    def decide(self, computes: bool) -> None:
        """Begins a step that is computed or skipped."""
        self.decided.append(computes)
        self.calls.append([])
        self.sides = 0

    def call(self, side: bool, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Makes a call of this step, or returns something in its stead.

        Arguments:
            side: Whether it is a ControlNet that is called, not the denoiser.
            original: What makes the call.
            args: What it is called with.
            kwargs: What it is called with, by name.
        """
        number = self.sides if side else len(self.calls[-1])
        others = [(side, earlier) for earlier in range(number)]
        made = self.decided[-1] or (not self.graph and wants_gradient(args, kwargs))
        found = () if made else self.outputs.find((side, number), others, args, kwargs)
        if side:
            self.sides += 1
        else:
            self.calls[-1].append(not found)
        if found:
            return found[0]
        output = original(*args, **kwargs)
        self.outputs.keep((side, number), args, kwargs, output)
        return output


def wants_gradient(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the first tensor of a call wants a gradient.

    If the run itself keeps none, the call is differentiated on its own, to guide the latents: nothing that
    was returned earlier will do.
    """
    first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
    return torch.is_grad_enabled() and first is not None and first.requires_grad
