"""The interface of a peer: another way to make fewer denoiser calls, given its best chance."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ...call import Call, Prompt
from ...gate.watch import denoisers_of
from ..work import blocks_of

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
    """

    pipe: Any
    call: Call
    calls: tuple[int, ...]
    prompts: Sequence[Prompt]
    plans: Mapping[int, Sequence[int]] = field(default_factory=dict)

    @property
    def blocks(self) -> int:
        """How many blocks a denoiser call has."""
        return len(blocks_of(denoisers_of(self.pipe)[0]))


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
    """A method with knobs. It is told apart by `name`; `needs` is the package it comes from."""

    name: ClassVar[str]
    about: ClassVar[str]
    needs: ClassVar[str] = "diffusers"

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
