"""What the field published, by name: sites, a policy and a forecast, and what has to be known for them."""

import functools
import json
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any

from ..errors import suggest
from ..forecasts import FORECASTS
from ..policies import POLICIES
from ..policies.mask import Mask
from ..policies.replay import replay
from ..profile import Profile
from .rule import LAYERS, Rule

# Parameters of a rule, not of its policy or forecast.
RULE_PARAMS = ("head", "tail", "site", "span", "output", "each", "tokens", "window")


@dataclass(frozen=True)
class Method:
    """A published method as a rule, or as several for several sites."""

    # where the survey (https://arxiv.org/abs/2510.19755) puts it, or would: static, timestep-adaptive, layer-adaptive,
    # predictive, hybrid
    kind: str
    paper: str  # the paper or, where there is none, the code
    site: str  # where it skips here
    policy: str  # when it computes: a key of POLICIES
    forecast: str  # what it uses instead: a key of FORECASTS
    params: Mapping[str, Any] = field(default_factory=dict)  # its defaults, of policy, forecast and rule
    # what it cannot run without: "profile" (calibrate), "model" (a published set, or a profile), or nothing
    needs: str = ""
    published: str = ""  # the part of `published.json` that has its sets
    # what further rules have that the first has not: another site, policy, forecast or parameters
    more: Sequence[Mapping[str, Any]] = ()
    fits: Sequence[str] = ("threshold", "interval")  # defaults that a profile replaces
    note: str = ""  # how it differs here from what was published
    # where it was checked: against another code, golden masks, its decisions written out as a loop, a closed form
    checked: str = ""

    @property
    def parts(self) -> list["Method"]:
        """The method as one for each of its rules."""
        own = [self]
        for changes in self.more:
            params = dict(changes)
            kinds = {key: params.pop(key) for key in ("site", "policy", "forecast") if key in params}
            drop: dict[str, Mapping[str, Any]] = {"policy": POLICIES, "forecast": FORECASTS}
            kept = self.params
            for key in kinds.keys() & drop.keys():  # what was said of another kind does not hold for this one
                kept = {k: v for k, v in kept.items() if k not in drop[key][getattr(self, key)].model_fields}
            own.append(replace(self, **kinds, params={**kept, **params}, more=()))
        return own

    @property
    def sites(self) -> str:
        """Where it skips here: all of its sites, each once."""
        return ", ".join(dict.fromkeys(part.site for part in self.parts))


def _read(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


METHODS = {name: Method(**entry) for name, entry in tomllib.loads(_read("methods.toml")).items()}


@functools.cache
def published_sets(part: str) -> dict[str, Any]:
    """Returns the published sets of a method, by the name of the model."""
    return dict(json.loads(_read("published.json"))[part]["sets"])


def find_name(what: str, name: str, known: Collection[str]) -> str:
    """Returns the name, or says which ones are near it."""
    if name in known:
        return name
    raise LookupError(f"no {what} {name!r}; {suggest(name, known)}")


def find_method(name: str) -> Method:
    """Returns a method; `LookupError` says which names are near."""
    return METHODS[find_name("method", name, METHODS)]


def build_rules(name: str, *, model: str | None = None, **params: Any) -> tuple[Rule, ...]:
    """Returns the rules of a method that needs no profile.

    Arguments:
        model: Whose published numbers to take, for methods that need some.
        params: Fields of its policy, its forecast or the rule: one value for all of its rules, or a mapping
            with a value for each site.
    """
    parts = find_method(name).parts
    kinds = [kind for part in parts for kind in (POLICIES[part.policy], FORECASTS[part.forecast])]
    known = {"model", *RULE_PARAMS}.union(*(kind.model_fields for kind in kinds)) - {"type"}
    for key in params.keys() - known:
        find_name(f"parameter of {name}", key, sorted(known))
    rules = []
    for part in parts:
        by_site = {k: v for k, v in params.items() if isinstance(v, Mapping) and k != "tokens"}
        wanted = {key: value for key, value in params.items() if key not in by_site}
        wanted |= {key: value[part.site] for key, value in by_site.items() if part.site in value}
        rules.append(_build_rule(name, part, {**part.params, **_find_published(name, part, model), **wanted}))
    return tuple(rules)


def _build_rule(name: str, method: Method, params: Mapping[str, Any]) -> Rule:
    policy, forecast = POLICIES[method.policy], FORECASTS[method.forecast]
    missing = [
        key
        for kind in (policy, forecast)
        for key, field_ in kind.model_fields.items()
        if field_.is_required() and key not in params
    ]
    choice = params.get("tokens")
    if isinstance(choice, Mapping) and choice.get("score") == "position" and not choice.get("scores"):
        missing.append("scores")
    if missing:
        cure = "fit it: `adaptcache calibrate --method`" if method.needs == "profile" else "give it"
        have = f", or a model: {', '.join(published_sets(method.published))}" if method.published else ""
        raise LookupError(f"{name} needs {', '.join(missing)}: {cure}{have}")
    return Rule(
        policy=policy(**_pick(policy, params)),
        forecast=forecast(**_pick(forecast, params)),
        **{"site": method.site, **{key: params[key] for key in RULE_PARAMS if key in params}},
    )


def _pick(kind: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters that are fields of a policy or a forecast."""
    return {key: value for key, value in params.items() if key in kind.model_fields}


def _find_published(name: str, method: Method, model: str | None) -> dict[str, Any]:
    """Returns the numbers that were published for a model."""
    if model is None:
        return {}
    if not method.published:
        raise LookupError(f"{name} has no published numbers: it takes no model")
    sets = published_sets(method.published)
    entry = dict(sets[find_name(f"{name} model", model, sets)])
    if method.published == "teacache":
        if thresholds := entry.pop("thresholds"):
            entry["threshold"] = thresholds[0]
    elif method.published == "cache-dit":
        entry = {"compute_steps": Mask.of_bins(entry["compute"], entry["cache"]).compute_steps}
    elif method.published == "meancache":
        entry = {"compute_steps": tuple(i in entry["compute"] for i in range(entry["steps"]))}
    return entry


def fit_rules(name: str, profile: Profile, *, budget: float = 0.5, **params: Any) -> tuple[Rule, ...]:
    """Returns the rules of a method, fitted to a profile.

    The profile measures whole steps. So what looks at blocks where it was published gets a rule for the site
    `step`; rules for layers, deep parts and groups of blocks, which go by the step's number, stay where they
    are.
    """
    return tuple(_fit_rule(part, profile, budget, params) for part in find_method(name).parts)


def _fit_rule(method: Method, profile: Profile, budget: float, params: Mapping[str, Any]) -> Rule:
    own = {**{k: v for k, v in method.params.items() if k not in (*method.fits, *RULE_PARAMS)}, **params}
    kind, forecast = POLICIES[method.policy], FORECASTS[method.forecast]
    if "on" in kind.model_fields:
        own["on"] = "input"
    instead = _pick(forecast, own)
    policy = kind.fit(profile, budget=budget, **{k: v for k, v in own.items() if k not in instead})
    place = {k: v for k, v in method.params.items() if k in RULE_PARAMS} | {"site": method.site}
    if (
        method.site not in ("deep", "encoder", "guidance", "tokens", *LAYERS)
        and not {"span", "each"} & method.params.keys()
    ):
        place = {}
    return Rule(policy=policy, forecast=forecast.fit(profile, replay(policy, profile), **instead), **place)
