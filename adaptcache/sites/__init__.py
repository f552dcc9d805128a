"""Sites inside of a denoiser where computation is skipped, and what is known of denoisers for that."""

import logging
from collections.abc import Sequence

from torch import nn

from ..errors import AttachError
from ..schedule.rule import LAYERS, Rule
from .blocks import Blocks
from .deep import Deep
from .denoisers import find_layers
from .guidance import Guidance
from .hook import Gate, SiteHook
from .interceptor import is_compiled
from .layers import Layers

__all__ = ["SiteHook", "check_compiled", "find_sites"]

logger = logging.getLogger(__name__)
COMPILED = (
    "{name} is compiled as a whole, and the site {site!r} lies within: nothing can be skipped inside of "
    "a graph; compile its blocks (compile_repeated_blocks) for the site 'blocks', or use the site 'step'"
)


def build_site(rule: Rule, denoiser: nn.Module, gate: Gate, alone: bool) -> SiteHook:
    """Returns the site of a rule in a denoiser."""
    if rule.site == "guidance":
        return Guidance(denoiser, gate, rule, alone)
    if rule.site == "blocks":
        return Blocks(denoiser, gate, rule)
    if rule.site == "deep":
        return Deep(denoiser, gate, rule)
    return Layers(denoiser, gate, rule)


def find_sites(rules: Sequence[Rule], gate: Gate) -> list[tuple[int, SiteHook]]:
    """Returns the sites of a schedule's rules in the denoisers of a pipeline, with the number of the rule.

    Raises:
        AttachError: There is none of them in this pipeline, or it is compiled together with what is around.
    """
    found: list[tuple[int, SiteHook]] = []
    for denoiser in gate.denoisers:
        name = type(denoiser).__name__
        if is_compiled(denoiser) and {rule.site for rule in rules} != {"guidance"}:
            raise AttachError(COMPILED.format(name=name, site=rules[0].site))
        for number, rule in enumerate(rules):
            if rule.site in LAYERS and not find_layers(denoiser, rule.site):
                logger.info("%s has no layers for the site %r: nothing to skip there", name, rule.site)
                continue
            found.append((number, build_site(rule, denoiser, gate, alone=len(rules) == 1)))
    if not found:
        sites = " or ".join(repr(rule.site) for rule in rules)
        raise AttachError(f"{name} has no layers for the site {sites}; use the site 'blocks' or 'step'")
    for _, site in found:
        check_compiled(site)
    return found


def check_compiled(site: SiteHook) -> None:
    """Raises where a site is compiled together with what is around it."""
    if name := site.compiled():
        raise AttachError(COMPILED.format(name=name, site=site.rule.site))
