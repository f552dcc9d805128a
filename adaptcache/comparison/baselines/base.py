"""The interface of a peer: another way to make fewer denoiser calls, given its best chance."""

from __future__ import annotations

import functools
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ...engines.diffusers.gate import Gate
from ...engines.diffusers.watch import denoisers_of
from ...runs import Call, Prompt
from ..trial import Meter, blocks_of

if TYPE_CHECKING:
    from ...profile import Profile

__all__ = ["Case", "Knobs", "Peer", "Ready"]

Knobs = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """What a comparison is about.

    Arguments:
        pipe: A pipeline that only the comparison uses.
        call: How it is called in full.
        calls: The budgets, in denoiser calls.
        prompts: Calibration prompts, for peers that are calibrated.
        plans: The numbers of the steps our schedules compute, by calls.
        measured: The profile of the calibration prompts, for peers that are `profiled`.
    """

    pipe: Any
    call: Call
    calls: tuple[int, ...]
    prompts: Sequence[Prompt]
    plans: Mapping[int, Sequence[int]] = field(default_factory=dict)
    measured: Profile | None = None

    @property
    def profile(self) -> Profile:
        """The profile of the calibration prompts."""
        assert self.measured is not None, "only for peers that say they are profiled"
        return self.measured

    @property
    def blocks(self) -> int:
        """How many blocks a denoiser call has."""
        return len(blocks_of(denoisers_of(self.pipe)[0]))

    @functools.cached_property
    def branches(self) -> int:
        """How many denoiser calls a step has: 2 where guidance calls it twice."""
        with closing(Gate(self.pipe, Meter()).open()) as gate:
            replace(self.call, steps=2)(self.pipe, self.prompts[:1])
        return max(map(len, gate.calls))


@dataclass(frozen=True)
class Ready:
    """How to run a pipeline that a peer was applied to.

    Arguments:
        call: How to call it.
        visitor: What decides at the gate; None leaves everything to the pipeline.
    """

    call: Call
    visitor: Any = None


class Peer(ABC):
    """A method with knobs.

    Arguments:
        name: What tells it apart.
        about: What it is.
        needs: The package it comes from.
        alone: Whether it decides during the run: then each prompt is a run of its own, as a batch would be
            decided for by its worst prompt, or by its mean.
        fine: A knob with which the calls fall; between two settings on both sides of a budget more are tried.
        profiled: Whether it is fitted to a profile.
        baseline: Whether it gets as many calls as there are, instead of what is best on calibration prompts.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    needs: ClassVar[str] = "diffusers"
    alone: ClassVar[bool] = False
    fine: ClassVar[str] = ""
    profiled: ClassVar[bool] = False
    baseline: ClassVar[bool] = False

    def missing(self, case: Case) -> str | None:
        """Returns why the method cannot run here, or None."""
        if importlib.util.find_spec(self.needs.replace("-", "_")) is None:
            return f"not installed: pip install {self.needs}"
        return None

    @abstractmethod
    def settings(self, case: Case) -> list[Knobs]:
        """Returns the knobs to try on the calibration prompts, for all budgets together."""

    @abstractmethod
    def applied(self, case: Case, knobs: Knobs) -> AbstractContextManager[Ready]:
        """Puts the method on the pipeline, and takes it off again."""
