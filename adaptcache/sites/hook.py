"""What all sites inside of a denoiser have in common: one decision a step, and a history of outputs."""

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..forecasts.base import History
from ..schedule.rule import Rule
from ..step import Step, entering
from .interceptor import ModuleInterceptor, Owner, find_compiled
from .outputs import join_tensors, split_tensors


class Gate(Owner, Protocol):
    """What sites need of the gate that follows the runs of a pipeline."""

    pipe: Any
    denoisers: list[nn.Module]  # of the pipeline
    within: dict[int, Callable[..., Any]]  # what makes calls of a denoiser, by its id, where a site skips some
    half: bool | None  # of a batch of two halves: whether only the one with the prompt goes through now

    def here(self) -> tuple[Step, int] | None:
        """Returns the step and the branch of the denoiser call under way; None outside of a run."""

    def skipped(self) -> None:
        """Notes that the call under way skips what a finer site has to skip."""


class SiteDecision:
    """Decides once a step, at its first branch, by a rule: the others follow.

    Arguments:
        instance: Which block or layer of the site it decides for.
        leader: The decision of the first of them, whose state the others share where the policy says so.
    """

    def __init__(self, rule: Rule, instance: int = 0, leader: "SiteDecision | None" = None) -> None:
        self.rule, self.instance, self.leader = rule, instance, leader
        self.state: Any = None
        self.made: list[bool] = []  # of the last run, by step: it is asked for after the end
        self.on_run_end()

    def on_run_start(self, rule: Rule, times: tuple[float, ...], gear: int) -> None:
        """A run has started; its first step may have been computed already."""
        self.rule, self.gear = rule, gear
        self.state = self.leader.state if self.leader and rule.policy.shared else rule.policy.init(times)
        if not self.past:  # an expert that takes over later
            self.made = []
        if self.first is not None:
            self.rule.policy.observe(self.state, *self.first)

    def on_run_end(self) -> None:
        """Releases tensors."""
        self.gear, self.state, self.computed = 0, None, True
        self.lead = 0  # the branch that decided last: the first, of those that this denoiser has
        self.first: tuple[Step, Tensor] | None = None  # the first step, where it came before the start
        self.past: tuple[int, ...] = ()
        self.step: Step | None = None

    def decide(self, step: Step, branch: int, signal: Callable[[], Tensor | None]) -> bool:
        """Whether the site is computed in this call of the denoiser; `signal` gives what the policy reads."""
        if branch == 0 or self.step is None or self.step.index != step.index:
            self.lead = branch
            if step.index == 0:
                self.made = []
            self.step = replace(step, past=self.past, gear=self.gear, instance=self.instance, x=signal())
            # The first step has no past, and an expert that takes over in the middle has none of its own.
            self.computed = not self.past or self.rule.computes(self.state, self.step)
            if self.computed:
                self.past = (step.index, *self.past)
            self.made += [False] * (step.index - len(self.made)) + [self.computed]  # an expert may begin late
        return self.computed

    def observe(self, output: Tensor, branch: int) -> None:
        """Notes what left the site at the step that was decided last, in the branch that decided."""
        if branch != self.lead:
            return
        assert self.step is not None
        if self.step.index == 0 and not self.step.times:
            self.first = self.step, output
        else:
            self.rule.policy.observe(self.state, self.step, output)


class SiteHook:
    """Skips one site of one denoiser by a rule.

    What is computed is kept by key (a branch, or a layer in a branch) and by name (one of its tensors).
    """

    def __init__(self, denoiser: nn.Module, gate: Gate, rule: Rule, parts: Mapping[str, nn.Module]) -> None:
        self.denoiser, self.gate, self.parts = denoiser, gate, parts
        self.decision = SiteDecision(rule)
        self.on_run_end()

    def install(self, undo: ExitStack) -> None:
        """Takes the calls of the site's modules, until `undo` is closed."""
        for name, module in self.parts.items():
            ModuleInterceptor.install(module, self.gate, partial(self.call, name), undo, shared=False)

    def take_denoiser(self, call: Callable[..., Any], undo: ExitStack) -> None:
        """Lets a function make the calls of the whole denoiser at steps that are computed, until `undo` is closed."""
        self.gate.within[id(self.denoiser)] = call
        undo.callback(self.gate.within.pop, id(self.denoiser), None)

    def call(self, name: str, module: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A module of the site was called."""
        raise NotImplementedError

    def compiled(self) -> str:
        """Returns the name of what is compiled together with the site, which cannot be skipped then."""
        return find_compiled(self.denoiser, self.parts)

    @property
    def rule(self) -> Rule:
        """What is followed in this run."""
        return self.decision.rule

    @property
    def step(self) -> Step:
        """The step that was decided last."""
        assert self.decision.step is not None
        return self.decision.step

    def on_run_start(self, rule: Rule, times: tuple[float, ...], gear: int) -> None:
        """A run has started, on a grid of N times; its first step may have been computed already."""
        self.decision.on_run_start(rule, times, gear)

    def on_guided(self, u: Tensor) -> None:
        """Step over: the scheduler is about to be given `u`, what guidance made of the outputs; with shape (B, *)."""

    def on_run_end(self) -> None:
        """Releases tensors."""
        self.decision.on_run_end()
        self.history = History(self.rule.forecast.depth, self.rule.forecast.keeps_latents)
        self.past: dict[Hashable, tuple[int, ...]] = {}  # by key: one may begin late
        self.shapes: dict[Hashable, torch.Size | None] = {}
        self.holes: dict[Hashable, Any] = {}  # what a module returned last, without its tensors

    def read_signal(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
        """Returns what the policy reads of what enters the site."""
        x = entering(args, kwargs) if self.rule.signal == "input" else None
        return None if x is None else x.clone()

    def knows(self, key: Hashable, shape: torch.Size | None = None) -> bool:
        """Whether something was computed here in this run, on such a shape."""
        return key in self.past and self.shapes[key] == shape

    def keep(
        self,
        key: Hashable,
        outputs: Mapping[Any, Tensor],
        shape: torch.Size | None = None,
        entered: Mapping[Any, Tensor] | None = None,
    ) -> None:
        """Notes the outputs of a computed step by name, and what entered; forgets those of another shape."""
        if not self.knows(key, shape):
            self.past[key] = ()
            for stream in [stream for stream in self.history.streams if stream[0] == key]:  # type: ignore[index]
                self.history.drop(stream)
        self.shapes[key] = shape
        self.past[key] = (self.step.index, *self.past[key])[: self.history.depth]
        for name, output in outputs.items():
            self.history.keep((key, name), entered.get(name) if entered else None, output, self.step.x)

    def keep_output(
        self, key: Hashable, output: Any, shape: torch.Size | None, entered: Tensor | None = None
    ) -> list[Tensor]:
        """Notes what a module returned at a computed step, and what entered it; returns its tensors."""
        self.holes[key], found = split_tensors(output)
        self.keep(key, dict(enumerate(found)), shape, None if entered is None else {0: entered})
        return found

    def forecast_output(self, key: Hashable, entered: Tensor | None = None) -> Any:
        """Returns what is used instead of what a module returned; its first tensor goes with what entered."""
        own = (self.forecast(key, number, None if number else entered) for number in itertools.count())
        return join_tensors(self.holes[key], own)

    def forecast(self, key: Hashable, name: Hashable, entered: Tensor | None = None) -> Tensor:
        """Returns what is used instead of an output."""
        known = self.history.known((key, name), entered, self.step.x)
        return self.rule.forecast.combine(known, replace(self.step, past=self.past[key]))
