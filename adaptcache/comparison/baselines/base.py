"""The interface of a baseline: another way to make fewer denoiser calls, at its best setting."""

import functools
import importlib.util
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import nn

from ...engines.diffusers.components import denoisers_of
from ...hooks import StepHook
from ...policies.base import StaticPolicy
from ...runs import PipelineCall, PromptSet, Setup
from ..trial import blocks_of, pipe_of

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """What a comparison is about."""

    setup: Setup  # runs a pipeline that only the comparison uses, by an exclusive engine
    prompts: PromptSet  # calibration prompts: what baselines are calibrated on, and their settings chosen on
    calls: tuple[int, ...]  # the budgets, in denoiser calls
    # the numbers of the steps our schedules compute, by calls
    plans: Mapping[int, Sequence[int]] = field(default_factory=dict)
    profile: Any = None  # the profile of the calibration prompts; None where no baseline is `profiled`

    @property
    def pipe(self) -> Any:
        """The pipeline."""
        return pipe_of(self.setup)

    @property
    def steps(self) -> int:
        """Steps of the full run."""
        return self.setup.call.num_inference_steps

    @property
    def denoisers(self) -> list[nn.Module]:
        """The denoisers of the pipeline."""
        return denoisers_of(self.pipe)

    @property
    def blocks(self) -> int:
        """How many blocks a denoiser call has."""
        return len(blocks_of(self.denoisers[0]))

    @functools.cached_property
    def branches(self) -> int:
        """How many denoiser calls a step has: 2 where guidance calls it twice."""
        short = replace(self.setup, call=replace(self.setup.call, num_inference_steps=2))
        return max(map(len, short.run(StepHook(), self.prompts[:1]).calls))


@dataclass(frozen=True)
class Ready:
    """How to run a pipeline that a baseline was applied to."""

    call: PipelineCall  # how to call it
    hook: StepHook | None = None  # who decides at the gate; None leaves everything to the pipeline


class Baseline(ABC):
    """A method with settings."""

    name: ClassVar[str]
    about: ClassVar[str]
    package: ClassVar[str] = "diffusers"  # where it comes from
    # Whether it decides during the run: then each prompt is a run of its own, as a batch would be decided for
    # by its worst prompt, or by its mean.
    per_prompt: ClassVar[bool] = False
    settings: ClassVar[Mapping[str, Sequence[Any]]] = {}  # values to try of each parameter, where all go with all
    threshold: ClassVar[str] = ""  # a parameter with which calls fall: settings around the budgets are refined by it
    profiled: ClassVar[bool] = False  # whether it is fitted to a profile
    probes: ClassVar[bool] = False  # whether it computes the first block at every step, to decide by
    # Whether it gets as many calls as there are, instead of what is best on the calibration prompts.
    takes_all_calls: ClassVar[bool] = False

    def find_obstacle(self, case: Case) -> str | None:
        """Returns why the method cannot run here, or None."""
        if importlib.util.find_spec(self.package.replace("-", "_")) is None:
            return f"not installed: pip install {self.package}"
        return None

    def propose(self, case: Case) -> list[Params]:
        """Returns the settings to try on the calibration prompts, for all budgets together."""
        return product_of(**self.settings)

    @abstractmethod
    def apply(self, case: Case, params: Params) -> AbstractContextManager[Ready]:
        """Puts the method on the pipeline, and takes it off again."""


@contextmanager
def with_scheduler(case: Case, scheduler: Any) -> Iterator[None]:
    """Gives the pipeline another scheduler."""
    before, case.pipe.scheduler = case.pipe.scheduler, scheduler
    try:
        yield
    finally:
        case.pipe.scheduler = before


def product_of(**values: Sequence[Any]) -> list[Params]:
    """Returns a setting for each combination of values, the last parameter changing fastest."""
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def even_steps(steps: int, calls: int) -> list[int]:
    """Returns so many step numbers, evenly spaced, with the first and the last."""
    return sorted({round(k * (steps - 1) / max(1, calls - 1)) for k in range(calls)})


def planned_steps(policy: StaticPolicy, steps: int) -> tuple[int, ...]:
    """Returns the numbers of the steps that a policy computes."""
    return tuple(policy.steps(tuple(1 - i / steps for i in range(steps))))


def nearest_plans(plans: Mapping[tuple[int, ...], Params], calls: Sequence[int], count: int) -> list[Params]:
    """Returns the settings of the `count` longest plans, numbers of computed steps, at or below each budget."""
    ranked = sorted(plans, key=len, reverse=True)
    chosen = {plan: plans[plan] for most in calls for plan in [p for p in ranked if len(p) <= most][:count]}
    return list(chosen.values())
