"""Which sites a schedule has inside of the denoisers of a pipeline."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Protocol

from torch import nn

from ..errors import AttachError
from ..schedule.rule import Rule
from .blocks import Blocks
from .decision import Course
from .deep import Deep
from .guidance import Guidance
from .interceptor import Sentry
from .layers import Layers
from .models import LAYERS, layers_of

__all__ = ["Place", "places_of", "uncompiled"]

logger = logging.getLogger(__name__)


class Place(Protocol):
    """A site inside of one denoiser."""

    course: Course

    def stand(self, undo: ExitStack) -> None:
        """Stands at the site, until `undo` is closed."""

    def compiled(self) -> str:
        """Returns the name of what is compiled together with the site, so that it cannot be skipped."""

    def begin(self, rule: Rule, times: tuple[float, ...], gear: int) -> None:
        """A run has started, on a grid of times with shape (N,)."""

    def end(self) -> None:
        """Lets go of tensors."""


def place_of(rule: Rule, denoiser: nn.Module, gate: Any, alone: bool) -> Place:
    """Returns the site of a rule in a denoiser."""
    if rule.site == "guidance":
        return Guidance(denoiser, gate, rule, alone)
    if rule.site == "blocks":
        return Blocks(denoiser, gate, rule)
    if rule.site == "deep":
        return Deep(denoiser, gate, rule)
    return Layers(denoiser, gate, rule)


def places_of(rules: Sequence[Rule], gate: Any) -> list[tuple[int, Place]]:
    """Returns the sites of a schedule's rules, with the number of the rule.

    Raises:
        AttachError: There is none of them in this pipeline, or it is compiled together with what is around.
    """
    found: list[tuple[int, Place]] = []
    for denoiser in gate.denoisers:
        name = type(denoiser).__name__
        if Sentry.compiled(denoiser) and {rule.site for rule in rules} != {"guidance"}:
            raise within(name, rules[0].site)
        for number, rule in enumerate(rules):
            if rule.site in LAYERS and not layers_of(denoiser, rule.site):
                logger.info("%s has no layers for the site %r: nothing to skip there", name, rule.site)
                continue
            found.append((number, place_of(rule, denoiser, gate, alone=len(rules) == 1)))
    if not found:
        sites = " or ".join(repr(rule.site) for rule in rules)
        raise AttachError(f"{name} has no layers for the site {sites}; use the site 'blocks' or 'step'")
    for _, place in found:
        uncompiled(place)
    return found


def uncompiled(place: Place) -> None:
    """Raises where a site is compiled together with what is around it."""
    if name := place.compiled():
        raise within(name, place.course.rule.site)


def within(name: str, site: str) -> AttachError:
    """Returns the error of a site that lies within a compiled module."""
    return AttachError(
        f"{name} is compiled as a whole, and the site {site!r} lies within: nothing can be skipped inside of "
        "a graph; compile its blocks (compile_repeated_blocks) for the site 'blocks', or use the site 'step'"
    )
