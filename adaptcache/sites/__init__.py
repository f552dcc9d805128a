"""Sites inside of a denoiser where computation is skipped, and what is known of denoisers for that."""

import logging
from collections.abc import Callable, Sequence

from torch import nn

from ..errors import AttachError
from ..schedule.rule import LAYERS, Rule
from .blocks import Blocks
from .deep import Deep
from .denoisers import find_layers, find_spec
from .guidance import Guidance
from .hook import Gate, SiteDecision, SiteHook
from .interceptor import is_compiled
from .layers import Layers
from .tokens import Regions, Tokens

__all__ = ["SiteHook", "check_compiled", "find_sites"]

SITES: dict[str, Callable[[nn.Module, Gate, Rule], SiteHook]] = {
    "blocks": Blocks, "deep": Deep, "regions": Regions, "tokens": Tokens
}  # fmt: skip
logger = logging.getLogger(__name__)
COMPILED = (
    "{name} is compiled as a whole, and the site {site!r} lies within: nothing can be skipped inside of "
    "a graph; compile its blocks (compile_repeated_blocks) for the site 'blocks', or use the site 'step'"
)


def build_sites(rule: Rule, denoiser: nn.Module, gate: Gate, alone: bool) -> list[SiteHook]:
    """Returns the site of a rule in a denoiser; one for each block or layer where each decides for itself."""
    if rule.each:
        return build_instances(rule, denoiser, gate)
    if rule.site == "guidance":
        return [Guidance(denoiser, gate, rule, alone)]
    return [SITES.get(rule.site, Layers)(denoiser, gate, rule)]


def build_instances(rule: Rule, denoiser: nn.Module, gate: Gate) -> list[SiteHook]:
    """Returns a site for each block, or layer of a type; `AttachError` where the rule has rows for more or fewer."""
    sites: list[SiteHook]
    if rule.site == "blocks":
        count = sum(len(getattr(denoiser, name)) for name in find_spec(denoiser).blocks)
        sites = [Blocks(denoiser, gate, rule, number) for number in range(count)]
    else:
        sites = [Layers(denoiser, gate, rule, name) for name in find_layers(denoiser, rule.site)]
    if (count := max(rule.instances, default=1)) not in (1, len(sites)):
        raise AttachError(
            f"the rule has {count} rows, and {type(denoiser).__name__} has {len(sites)} of the site {rule.site!r}: "
            "it was made for another model"
        )
    for number, site in enumerate(sites):
        site.decision = SiteDecision(rule, number, sites[0].decision if number else None)
    return sites


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
            found += [(number, site) for site in build_sites(rule, denoiser, gate, alone=len(rules) == 1)]
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
