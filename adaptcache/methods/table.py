"""The table of the methods there are, and of the numbers that were published for them."""

from __future__ import annotations

import difflib
import functools
import json
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any

from ..forecasts import FORECASTS
from ..policies import POLICIES

__all__ = ["METHODS", "Method", "method_named", "one_of", "published"]


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
