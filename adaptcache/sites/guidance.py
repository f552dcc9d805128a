"""The site `guidance`: the denoiser call that only serves guidance, made of the output of the other one.

Where a step calls its denoiser twice, the first call is the one with the prompt, in the pipelines of
diffusers. At a skipped step the later calls are not made: what they returned differed from what the first one
returned, and the forecast of that difference is added to the first one's output.

Where both are one call on a batch of two halves, the half without the prompt comes first. Then the call is
made on the other half alone: whatever of its arguments has as many samples as the batch is cut.

The file is longer than ours are: both ways of guiding share the history of one difference.

References:
    | FasterCache (Lv et al., 2024), https://arxiv.org/abs/2410.19355
    | Guidance in an interval (Kynkäänniemi et al., 2024), https://arxiv.org/abs/2404.07724
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AttachError
from ..forecasts.history import History
from ..schedule.rule import Rule
from ..step import Step, entering
from .decision import Course
from .outputs import last_half, leading, put_together, taken_apart

__all__ = ["Guidance"]

NONE = (
    "{name} calls its denoiser once a step, and not on a batch of two halves with and without the prompt: "
    "there is no call for guidance that the site 'guidance' could skip; turn guidance on, or use another "
    "site (a pipeline that has no `do_classifier_free_guidance` does not say what its batch is)"
)


class Guidance:
    """Skips the calls of one denoiser that only serve guidance, by a rule.

    Arguments:
        alone: Whether a run without such calls is an error: nothing else would be skipped.
    """

    def __init__(self, denoiser: nn.Module, gate: Any, rule: Rule, alone: bool = True) -> None:
        self.denoiser, self.gate, self.alone = denoiser, gate, alone
        self.course = Course(rule)
        self.end()

    def stand(self, undo: ExitStack) -> None:
        """Takes the calls that the gate makes, until `undo` is closed."""
        self.gate.within[id(self.denoiser)] = self.call
        undo.callback(self.gate.within.pop, id(self.denoiser), None)

    def compiled(self) -> str:
        """Nothing is in the way: whole calls are skipped."""
        return ""

    def begin(self, rule: Rule, times: tuple[float, ...], gear: int) -> None:
        """A run has started; its first step was computed already."""
        if (run := self.gate.run) is not None and self.entered and len(run.calls[0]) == 1:
            if self.halved:
                self.gate.half = False
                self.decides(Step(0, ()), 1, None)
                self.learn_halves(0)
            elif self.alone or self.guided:
                raise AttachError(NONE.format(name=type(self.gate.pipe).__name__))
        self.course.begin(rule, times, gear)

    def end(self) -> None:
        """Lets go of tensors."""
        self.course.end()
        self.history = History(self.course.rule.forecast.depth)
        self.past: dict[int, tuple[int, ...]] = {}  # by branch: one may begin late
        self.first: list[Tensor] = []  # what the first call of this step returned
        self.entered: torch.Size | None = None
        self.halved = self.sure = self.guided = False
        self.holes: Any = None  # what a later call returned last, without its tensors
        self.gate.half = None

    def call(self, original: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """The denoiser was called at a step that is computed."""
        here = self.gate.here()
        assert here is not None
        step, branch = here
        if branch:
            return self.later(step, branch, original, args, kwargs)
        x = entering(args, kwargs)
        if self.entered is None and x is not None:  # its first call in this run
            self.entered = leading(args, kwargs)
            self.guided = bool(getattr(self.gate.pipe, "do_classifier_free_guidance", False))
            self.halved = is_guided(self.gate.pipe) and twice(x)
        whole = self.gate.half is not None and leading(args, kwargs) == self.entered
        if whole and not self.sure and x is not None:
            # Two prompts that began with the same noise are told apart once a step was taken.
            self.sure, self.halved = True, twice(x)
            if not self.halved:
                whole, self.gate.half, self.course.made = False, None, []
            if not self.halved and self.alone:
                raise AttachError(NONE.format(name=type(self.gate.pipe).__name__))
        if whole and not self.decides(step, 1, x):
            return self.half(original, args, kwargs)
        output = original(*args, **kwargs)
        self.first = taken_apart(output)[1]
        if whole:
            self.learn_halves(step.index)
        return output

    def decides(self, step: Step, branch: int, x: Tensor | None) -> bool:
        """Whether the calls for guidance are made at this step."""
        wanted = None if x is None or self.course.rule.signal == "none" else x.clone()
        return self.course.decide(step, branch, lambda: wanted) or branch not in self.past

    def later(self, step: Step, branch: int, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A call after the first was made: it serves guidance."""
        if not self.decides(step, branch, entering(args, kwargs)):
            self.gate.skipped()
            made = self.forecasts(branch, self.first)
            return put_together(self.holes, made)
        output = original(*args, **kwargs)
        self.holes, found = taken_apart(output)
        self.learn(step.index, branch, found, self.first)
        return output

    def learn_halves(self, index: int) -> None:
        """Notes by how much the halves of an output differ."""
        halves = [tensor.chunk(2) for tensor in self.first]
        self.learn(index, 1, [without for without, _ in halves], [given for _, given in halves])

    def learn(self, index: int, branch: int, without: list[Tensor], given: list[Tensor]) -> None:
        """Notes by how much outputs differ from those with the prompt."""
        assert self.course.step is not None
        for number, (a, b) in enumerate(zip(without, given, strict=True)):
            self.history.keep((branch, number), None, a - b, self.course.step.x)
        self.past[branch] = (index, *self.past.get(branch, ()))
        if branch == 1:
            self.course.observe(without[0] - given[0])

    def forecasts(self, branch: int, given: list[Tensor]) -> list[Tensor]:
        """Returns what is used instead of outputs without the prompt."""
        assert self.course.step is not None
        step, forecast = replace(self.course.step, past=self.past[branch]), self.course.rule.forecast
        return [
            b + forecast.combine(self.history.known((branch, number), None, step.x), step)
            for number, b in enumerate(given)
        ]

    def half(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Makes the call on the half with the prompt, and returns the output of both halves."""
        assert self.entered is not None
        count = self.entered[0]
        self.gate.half = True
        try:
            output = original(*last_half(tuple(args), count), **last_half(dict(kwargs), count))
        finally:
            self.gate.half = False
        holes, given = taken_apart(output)
        made = self.forecasts(1, given)
        return put_together(holes, [torch.cat(pair) for pair in zip(made, given, strict=True)])


def is_guided(pipe: Any) -> bool:
    """Whether a pipeline says that it may guide with a second output; distilled ones have a scale as well."""
    says = getattr(pipe, "do_classifier_free_guidance", None)
    return bool((getattr(pipe, "guidance_scale", None) or 0) > 1 if says is None else says)


def twice(x: Tensor) -> bool:
    """Whether a batch has two equal halves. Syncs the device."""
    a, b = x[: len(x) // 2], x[len(x) // 2 :]
    return a.shape == b.shape and torch.equal(a, b)
