"""Plans for each block or layer, by what reuse of each is off by; optuna sees in runs what errors do together."""

from collections.abc import Sequence

import numpy as np

from ..errors import AttachError
from ..evaluation.generate import run_latents
from ..fitting.instances import accumulated_rows, cheapest_rows, two_speed_rows
from ..fitting.kernel import Array
from ..forecasts.affine import Affine
from ..forecasts.base import Forecast
from ..forecasts.extrapolate import Extrapolate
from ..policies.table import Table
from ..profile import Profile
from ..profiling.instances import InstanceErrors, measure_instances
from ..profiling.regressions import fit_affine
from ..runs import PromptSet, Setup
from ..runtime.runner import Runner
from ..schedule.methods import find_method
from ..schedule.rule import Rule
from ..schedule.schedule import Schedule
from ..step import TINY

NUMBERS = 60_000  # that are fitted and kept in a schedule: a megabyte holds no more
RANGE = 3.0  # decades that the weight of a block may go up or down


def fit_tables(
    setup: Setup,
    prompts: PromptSet,
    profile: Profile,
    method: str,
    budget: float,
    sites: Sequence[str],
    trials: int = 0,
) -> tuple[Rule, ...]:
    """Returns rules with a row of steps for each block or layer, from errors of reuse of each in full runs.

    Of several sites those that the denoiser does not have are left out.

    Arguments:
        prompts: What to measure the errors on.
        profile: Says what an error at each step does to the end result.
        method: `block-caching` and `profilingdit` have rules of their own; what others trained or searched is
            planned (`cheapest_rows`), under a budget of measured time.
        budget: The fraction of the blocks, or of their time, that is computed.
        sites: "blocks", or types of layers.
        trials: How many plans optuna runs; none takes the planner's as it is.
    """
    weights = profile.sensitivity * np.diagonal(profile.kernel)
    rules = list[Rule]()
    for site in sites:
        try:
            found = measure_instances(setup, prompts, site)  # type: ignore[arg-type]
        except AttachError:
            if site == sites[-1] and not rules:
                raise
            continue
        if method in ("block-caching", "eoc"):
            rows = accumulated_rows(found.changes, budget)
        elif method == "profilingdit":
            rows = two_speed_rows(found.changes, budget)
        elif trials:
            rows = search_rows(setup, prompts, found, weights, budget, trials)
        else:
            rows = cheapest_rows(found.errors, weights, found.seconds, budget)
        table = build_table(rows, profile.steps)
        forecast: Forecast = Extrapolate(order=0)
        if find_method(method).forecast == "affine":
            wide = sum(profile.steps - len(row) for row in rows) * 2 * found.channels <= NUMBERS
            forecast = Affine(rows=fit_affine(setup, prompts, site, rows, channels=wide and method != "eoc"))
        rules.append(Rule(site=site, policy=table, forecast=forecast, each=True))
    return tuple(rules)


def build_table(rows: Sequence[Sequence[int]], steps: int) -> Table:
    """Returns the policy that computes these steps of each block."""
    return Table(rows=tuple("".join("01"[i in row] for i in range(steps)) for row in rows))


def search_rows(
    setup: Setup, prompts: PromptSet, found: InstanceErrors, weights: Array, budget: float, trials: int
) -> list[list[int]]:
    """Returns the rows whose runs end nearest to the full ones, of plans within a budget of measured time.

    Each trial weighs the errors of every block anew, by the sampler of optuna, and plans by these weights; the first
    is the plan for the errors as they are. So all keep the budget, and no trial is lost on plans without sense.

    Arguments:
        found: What reuse of each block is off by at the site, and how long each takes.
        weights: What an error at each step does to the end result, with shape (N,).
        budget: The fraction of the time of all blocks.
        trials: How many plans are run on all prompts.
    """
    try:
        import optuna
    except ImportError:
        raise ImportError("trials need optuna 4.9 or newer: pip install 'adaptcache-diffusers[tune]'") from None

    full, kept = run_latents(setup, prompts)[0], list[list[list[int]]]()

    def objective(trial: optuna.Trial) -> float:
        decades = [trial.suggest_float(name, -RANGE, RANGE) for name in found.names]
        rows = cheapest_rows(found.errors * 10 ** np.array(decades)[:, None, None], weights, found.seconds, budget)
        kept.append(rows)
        table = build_table(rows, len(weights))
        rule = Rule(site=found.site, policy=table, forecast=Extrapolate(order=0), each=True)
        made = run_latents(setup, prompts, Runner(Schedule(name="trial", rules=(rule,)), gear=0))[0]
        off = (made - full).flatten(1).square().mean(1)
        setup.progress("plans for each block", len(kept), trials)
        return float(off.clamp_min(TINY).log().mean())  # decibels: no single prompt decides

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    study.enqueue_trial(dict.fromkeys(found.names, 0.0))
    study.optimize(objective, n_trials=trials)
    return kept[study.best_trial.number]
