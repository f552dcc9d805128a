"""What the field published, by name: sites, a policy and a forecast, and what has to be known for them."""

from __future__ import annotations

import difflib
import functools
import json
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import TYPE_CHECKING, Any

from ..forecasts import FORECASTS
from ..policies import POLICIES
from ..policies.replay import replayed
from ..sites.models import LAYERS
from .rule import Rule

if TYPE_CHECKING:
    from ..profile import Profile


# The table of the methods there are, and of the numbers that were published for them.


@dataclass(frozen=True)
class Method:
    """A published method as a rule, or as several for several sites.

    Arguments:
        kind: Where the survey (https://arxiv.org/abs/2510.19755) puts it, or would: static,
            timestep-adaptive, layer-adaptive, predictive, hybrid.
        paper: The paper or, where there is none, the code.
        site: Where it skips here.
        policy: When it computes: a key of POLICIES.
        forecast: What it uses instead: a key of FORECASTS.
        knobs: Its defaults, of policy, forecast and rule.
        needs: What it cannot run without: "profile" (calibrate), "model" (a published set, or a profile), or
            nothing.
        published: The part of `published.json` that has its sets.
        more: What further rules have that the first has not: another site, policy or forecast, other knobs.
        fits: Defaults that a profile replaces.
        note: How it differs here from what was published.
    """

    kind: str
    paper: str
    site: str
    policy: str
    forecast: str
    knobs: Mapping[str, Any] = field(default_factory=dict)
    needs: str = ""
    published: str = ""
    more: Sequence[Mapping[str, Any]] = ()
    fits: Sequence[str] = ("threshold", "interval")
    note: str = ""

    @property
    def parts(self) -> list[Method]:
        """The method as one for each of its rules."""
        own = [self]
        for changes in self.more:
            knobs = dict(changes)
            kinds = {key: knobs.pop(key) for key in ("site", "policy", "forecast") if key in knobs}
            drop: dict[str, Mapping[str, Any]] = {"policy": POLICIES, "forecast": FORECASTS}
            kept = self.knobs
            for key in kinds.keys() & drop.keys():  # what was said of another kind does not hold for this one
                kept = {k: v for k, v in kept.items() if k not in drop[key][getattr(self, key)].model_fields}
            own.append(replace(self, **kinds, knobs={**kept, **knobs}, more=()))
        return own

    @property
    def sites(self) -> str:
        """Where it skips here: all of its sites, each once."""
        return ", ".join(dict.fromkeys(part.site for part in self.parts))


def _table() -> dict[str, Method]:
    text = (resources.files(__package__) / "methods.toml").read_text(encoding="utf-8")
    return {name: Method(**entry) for name, entry in tomllib.loads(text).items()}


METHODS = _table()


@functools.cache
def published(part: str) -> dict[str, Any]:
    """Returns the published sets of a method, by the name of the model."""
    text = (resources.files(__package__) / "published.json").read_text(encoding="utf-8")
    return dict(json.loads(text)[part]["sets"])


def one_of(what: str, name: str, known: Collection[str]) -> str:
    """Returns the name, or says which ones are near it."""
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, 3, 0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known)}"
    raise LookupError(f"no {what} {name!r}; {hint}")


def method_named(name: str) -> Method:
    """Returns a method; `LookupError` says which names are near."""
    return METHODS[one_of("method", name, METHODS)]


# From the name of a method to its rules: with given or published numbers, or fitted to a profile.

PLACE = ("head", "tail", "site", "span", "output", "window")  # knobs of a rule, not of its parts


def rules_of(name: str, *, model: str | None = None, **knobs: Any) -> tuple[Rule, ...]:
    """Returns the rules of a method that needs no profile.

    Arguments:
        name: A key of METHODS.
        model: Whose published numbers to take, for methods that need some.
        knobs: Fields of its policy, its forecast or the rule: one value for all of its rules, or a mapping
            with a value for each site.
    """
    method = method_named(name)
    known = {"model", *PLACE}
    for part in method.parts:
        known |= fields_of(part.policy, part.forecast)
    for key in knobs.keys() - known:
        one_of(f"knob of {name}", key, sorted(known - {"type"}))
    rules = []
    for part in method.parts:
        wanted = {key: value for key, value in knobs.items() if not isinstance(value, Mapping)}
        by_site = {key: value for key, value in knobs.items() if isinstance(value, Mapping)}
        wanted |= {key: value[part.site] for key, value in by_site.items() if part.site in value}
        rules.append(rule_of(name, part, {**part.knobs, **from_published(name, part, model), **wanted}))
    return tuple(rules)


def fields_of(policy: str, forecast: str) -> set[str]:
    """Returns the knobs of a policy and a forecast."""
    return {*POLICIES[policy].model_fields, *FORECASTS[forecast].model_fields}


def rule_of(name: str, method: Method, knobs: Mapping[str, Any]) -> Rule:
    """Returns one rule of a method."""
    missing = [
        key
        for kind in (POLICIES[method.policy], FORECASTS[method.forecast])
        for key, field_ in kind.model_fields.items()
        if field_.is_required() and key not in knobs
    ]
    if missing:
        cure = "fit it: `adaptcache calibrate --method`" if method.needs == "profile" else "give it"
        have = f", or a model: {', '.join(published(method.published))}" if method.published else ""
        raise LookupError(f"{name} needs {', '.join(missing)}: {cure}{have}")
    return Rule(
        policy=POLICIES[method.policy](**of_kind(POLICIES[method.policy], knobs)),
        forecast=FORECASTS[method.forecast](**of_kind(FORECASTS[method.forecast], knobs)),
        **{"site": method.site, **{key: knobs[key] for key in PLACE if key in knobs}},
    )


def of_kind(kind: Any, knobs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those knobs that are fields of a policy or a forecast."""
    return {key: value for key, value in knobs.items() if key in kind.model_fields}


def from_published(name: str, method: Method, model: str | None) -> dict[str, Any]:
    """Returns the numbers that were published for a model."""
    if model is None:
        return {}
    if not method.published:
        raise LookupError(f"{name} has no published numbers: it takes no model")
    sets = published(method.published)
    entry = dict(sets[one_of(f"{name} model", model, sets)])
    if method.published == "teacache":
        if thresholds := entry.pop("thresholds"):
            entry["threshold"] = thresholds[0]
    elif method.published == "cache-dit":
        mask = POLICIES["mask"].of_bins(entry["compute"], entry["cache"])  # type: ignore[attr-defined]
        entry = {"compute_steps": mask.compute_steps}
    elif method.published == "meancache":
        entry = {"compute_steps": tuple(i in entry["compute"] for i in range(entry["steps"]))}
    return entry


def fitted_rules(name: str, profile: Profile, *, budget: float = 0.5, **knobs: Any) -> tuple[Rule, ...]:
    """Returns the rules of a method, fitted to a profile.

    The profile measures whole steps. So what looks at blocks where it was published gets a rule for the site
    `step`; rules for layers, deep parts and groups of blocks, which go by the step's number, stay where they
    are.

    Arguments:
        name: A key of METHODS.
        profile: What was measured on calibration prompts.
        budget: The fraction of the steps that are computed.
        knobs: Fields of its policy and its forecast that are not fitted.
    """
    method = method_named(name)
    return tuple(fitted_rule(part, profile, budget, knobs) for part in method.parts)


def fitted_rule(method: Method, profile: Profile, budget: float, knobs: Mapping[str, Any]) -> Rule:
    """Returns one rule of a method, fitted to a profile."""
    own = {**{k: v for k, v in method.knobs.items() if k not in (*method.fits, *PLACE)}, **knobs}
    kind, forecast = POLICIES[method.policy], FORECASTS[method.forecast]
    if "on" in kind.model_fields:
        own["on"] = "input"
    instead = of_kind(forecast, own)
    policy = kind.fit(profile, budget=budget, **{k: v for k, v in own.items() if k not in instead})
    stays = method.site in ("deep", "guidance", *LAYERS) or "span" in method.knobs
    place = {k: v for k, v in method.knobs.items() if k in PLACE} | {"site": method.site} if stays else {}
    plan = replayed(policy, profile)
    return Rule(policy=policy, forecast=forecast.fit(profile, plan, **instead), **place)
