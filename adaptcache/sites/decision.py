"""What a site inside of a denoiser knows of a run: what was decided, and what it may learn from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from ..schedule.rule import Rule
from ..step import Step

__all__ = ["Course"]


class Course:
    """Decides once a step, at its first branch: the others follow.

    Arguments:
        rule: What to decide by.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.made: list[bool] = []  # of the last run, by step: it is asked for after the end
        self.end()

    def begin(self, rule: Rule, times: tuple[float, ...], gear: int) -> None:
        """A run has started; its first step may have been computed already."""
        self.rule, self.gear, self.state = rule, gear, rule.policy.init(times)
        if not self.past:  # an expert that takes over later
            self.made = []
        if self.seen is not None:
            self.rule.policy.observe(self.state, *self.seen)

    def end(self) -> None:
        """Lets go of tensors."""
        self.gear, self.state, self.computed = 0, None, True
        self.seen: tuple[Step, Tensor] | None = None  # of the first step, where it came before `begin`
        self.past: tuple[int, ...] = ()
        self.step: Step | None = None

    def decide(self, step: Step, branch: int, signal: Callable[[], Tensor | None]) -> bool:
        """Returns whether the site is computed in this call of the denoiser.

        Arguments:
            step: Where the run is.
            branch: Which call of this step it is.
            signal: Gives what the policy reads.
        """
        if branch == 0 or self.step is None or self.step.index != step.index:
            if step.index == 0:
                self.made = []
            self.step = replace(step, past=self.past, gear=self.gear, x=signal())
            # The first step has no past, and an expert that takes over in the middle has none of its own.
            self.computed = not self.past or self.rule.computes(self.state, self.step)
            if self.computed:
                self.past = (step.index, *self.past)
            self.made += [False] * (step.index - len(self.made)) + [self.computed]  # an expert may begin late
        return self.computed

    def observe(self, output: Tensor) -> None:
        """Notes what left the site at the step that was decided last."""
        assert self.step is not None
        if self.step.index == 0 and not self.step.times:
            self.seen = self.step, output
        else:
            self.rule.policy.observe(self.state, self.step, output)
