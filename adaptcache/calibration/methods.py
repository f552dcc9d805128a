"""Fits a published method to a pipeline, as its paper does it where it says how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import AttachError
from ..fitting.instances import accumulated_rows, cheapest_rows, two_speed_rows
from ..forecasts.extrapolate import Extrapolate
from ..policies.local_error import LocalError
from ..policies.table import Table
from ..profile import Profile
from ..profiling.instances import measure_instances
from ..profiling.layers import layer_errors
from ..runs import PromptSet, Setup
from ..schedule.methods import find_method, fit_rules
from ..schedule.rule import Rule
from ..schedule.schedule import Schedule
from .fit import build_schedule

FEW = 8  # prompts for the errors of layers, which are means over layers too: they hardly differ by prompt
NEVER = 1e9  # no error is as large


def fit_thresholds(errors: Mapping[str, np.ndarray], budget: float, first: bool = False) -> tuple[Rule, ...]:
    """Returns a rule for each type of layer, with the threshold that comes nearest to a budget.

    Arguments:
        errors: By site, the error of reuse with shape (N, L): of step i at step i + 1 + k. Not finite where
            there is no such step.
        budget: The fraction of the layers that is computed, the mean over types.
        first: Whether the first error above the threshold ends a skip; SmoothCache takes the last one below.
    """
    if not 0 < budget <= 1:
        raise ValueError(f"budget must be in (0, 1], got {budget:g}: the fraction of the layers computed")
    rows = {site: np.where(np.isfinite(table), table, NEVER) for site, table in errors.items()}
    values = np.unique(np.concatenate([table[table < NEVER] for table in rows.values()]))
    thresholds = [0.0, *((values[:-1] + values[1:]) / 2), values[-1] * 1.001]
    steps = len(next(iter(rows.values())))
    grid = tuple(1 - i / steps for i in range(steps))

    def policies(threshold: float) -> dict[str, LocalError]:
        return {
            site: LocalError(errors=tuple(map(tuple, table.tolist())), threshold=threshold, first=first)
            for site, table in rows.items()
        }

    def off(threshold: float) -> float:
        made = [len(policy.steps(grid)) for policy in policies(threshold).values()]
        return abs(float(np.mean(made)) / steps - budget)

    low, high = 0, len(thresholds) - 1  # higher thresholds compute less, but for a few steps
    near = [thresholds[round(i)] for i in np.linspace(low, high, min(len(thresholds), 65))]
    best = min(near, key=off)
    chosen = policies(float(best)).items()
    return tuple(Rule(site=site, policy=policy, forecast=Extrapolate(order=0)) for site, policy in chosen)


def fit_tables(
    setup: Setup, prompts: PromptSet, profile: Profile, method: str, budget: float, sites: Sequence[str]
) -> tuple[Rule, ...]:
    """Returns rules with a row of steps for each block or layer, from errors of reuse of each in full runs.

    Of several sites those that the denoiser does not have are left out.

    Arguments:
        setup: Who runs, and how.
        prompts: What to measure the errors on.
        profile: Says what an error at each step does to the end result.
        method: `block-caching` and `profilingdit` have rules of their own; what others trained or searched is
            planned (`cheapest_rows`), under a budget of measured time.
        budget: The fraction of the blocks, or of their time, that is computed.
        sites: "blocks", or types of layers.
    """
    weights = profile.sensitivity * np.diagonal(profile.kernel)
    rules = list[Rule]()
    for site in sites:
        try:
            found = measure_instances(setup, prompts, site)
        except AttachError:
            if site == sites[-1] and not rules:
                raise
            continue
        if method == "block-caching":
            rows = accumulated_rows(found.changes, budget)
        elif method == "profilingdit":
            rows = two_speed_rows(found.changes, budget)
        else:
            rows = cheapest_rows(found.errors, weights, found.seconds, budget)
        table = Table(rows=tuple("".join("01"[i in row] for i in range(profile.steps)) for row in rows))
        rules.append(Rule(site=site, policy=table, forecast=Extrapolate(order=0), each=True))
    return tuple(rules)


def fit_method(
    setup: Setup,
    prompts: PromptSet,
    profile: Profile,
    method: str,
    budget: float,
    params: Mapping[str, Any] | None = None,
) -> Schedule:
    """Fits a published method.

    Methods with a threshold get the one that spends the budget on the calibration prompts, those with an
    interval get the interval. Methods for types of layers with errors of their own (SmoothCache) get these
    errors from one more full run.

    Arguments:
        setup: Who runs, and how.
        prompts: Calibration prompts; the papers take one to a hundred.
        profile: What was measured on them.
        method: A name that `adaptcache methods` lists.
        budget: Fraction of the calls that are made; of layers: of all of a type.
        params: Fields of the method's policy and forecast that are not fitted.
    """
    chosen, own = find_method(method), dict(params or {})
    if chosen.policy == "table":
        sites = [own["site"]] if "site" in own else [part.site for part in chosen.parts]
        rules = fit_tables(setup, prompts[:FEW], profile, method, budget, sites)
    elif chosen.policy == "local-error" and chosen.site != "step":
        errors = layer_errors(
            setup, prompts[:FEW], [part.site for part in chosen.parts], longest=own.get("longest", 3)
        )
        rules = fit_thresholds(errors, budget, first=own.get("first", False))
    else:
        rules = fit_rules(method, profile, budget=budget, **own)
    return build_schedule(setup, profile, rules, {"prompts": len(prompts), "method": method}, method)
