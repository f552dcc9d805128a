"""What the field published, by name: a site, a policy and a forecast, and what has to be known for them."""

from __future__ import annotations

import difflib
import functools
import json
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any

from ..forecasts import FORECASTS
from ..policies import POLICIES
from ..schedule import Rule
from .replay import replayed

if TYPE_CHECKING:
    from ..profiling.profile import Profile

__all__ = ["METHODS", "Method", "fitted_rule", "method_named", "published", "rule_of"]


@dataclass(frozen=True)
class Method:
    """A published method as a rule.

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
    note: str = ""


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


def rule_of(name: str, *, model: str | None = None, **knobs: Any) -> Rule:
    """Returns the rule of a method that needs no profile.

    Arguments:
        name: A key of METHODS.
        model: Whose published numbers to take, for methods that need some.
        knobs: Fields of its policy, its forecast or the rule.
    """
    method = method_named(name)
    knobs = {**method.knobs, **from_published(name, method, model), **knobs}
    own = set(POLICIES[method.policy].model_fields) | set(FORECASTS[method.forecast].model_fields)
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
    for key in knobs.keys() - own - {"head", "tail", "site"}:
        one_of(f"knob of {name}", key, sorted((own | {"head", "tail", "site", "model"}) - {"type"}))
    rest = {key: knobs[key] for key in ("head", "tail", "site") if key in knobs}
    return Rule(
        policy=POLICIES[method.policy](**of_kind(POLICIES[method.policy], knobs)),
        forecast=FORECASTS[method.forecast](**of_kind(FORECASTS[method.forecast], knobs)),
        **{"site": method.site, **rest},
    )


FITTED = ("head", "tail", "threshold", "interval")  # defaults that a profile replaces


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


def fitted_rule(name: str, profile: Profile, *, budget: float = 0.5, **knobs: Any) -> Rule:
    """Returns the rule of a method, fitted to a profile.

    The profile measures whole steps, so the rule is for the site `step` wherever the method was published.

    Arguments:
        name: A key of METHODS.
        profile: What was measured on calibration prompts.
        budget: The fraction of the steps that are computed.
        knobs: Fields of its policy and its forecast that are not fitted.
    """
    method = method_named(name)
    own = {**{k: v for k, v in method.knobs.items() if k not in FITTED}, **knobs}
    kind, forecast = POLICIES[method.policy], FORECASTS[method.forecast]
    if "on" in kind.model_fields:
        own["on"] = "input"
    instead = of_kind(forecast, own)
    policy = kind.fit(profile, budget=budget, **{k: v for k, v in own.items() if k not in instead})
    return Rule(policy=policy, forecast=forecast.fit(profile, replayed(policy, profile), **instead))
