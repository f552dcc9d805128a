"""Searches plans for each block or layer by optuna: what errors really do together is seen in runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..evaluation.generate import run_latents
from ..fitting.instances import cheapest_rows
from ..fitting.kernel import Array
from ..forecasts.extrapolate import Extrapolate
from ..policies.table import Table
from ..profiling.instances import InstanceErrors
from ..runs import PromptSet, Setup
from ..runtime.runner import Runner
from ..schedule.rule import Rule
from ..schedule.schedule import Schedule
from ..step import TINY

RANGE = 3.0  # decades that the weight of a block may go up or down


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
