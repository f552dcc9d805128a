"""Fits a published method to a pipeline, as its paper does it where it says how."""

import inspect
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import AttachError, ScheduleError
from ..evaluation.generate import run_latents
from ..fitting.instances import accumulated_rows, cheapest_rows, two_speed_rows
from ..fitting.kernel import Array
from ..forecasts import FORECASTS
from ..forecasts.affine import Affine
from ..forecasts.base import Forecast
from ..forecasts.channels import group_channels
from ..forecasts.extrapolate import Extrapolate
from ..forecasts.increment import Factors, Increment
from ..hooks import SchedulerStep, StepHook
from ..policies import POLICIES
from ..policies.gate import Gate, Linear
from ..policies.local_error import LocalError
from ..policies.replay import replay
from ..policies.table import Table
from ..profiling.instances import (
    InstanceErrors,
    fit_affine,
    fit_gates,
    fit_increments,
    fit_positions,
    layer_errors,
    measure_instances,
)
from ..profiling.measure import Measurement
from ..runs import PromptSet, Setup
from ..runtime.runner import Runner
from ..schedule.methods import find_method, find_name, fit_rules
from ..schedule.rule import LAYERS, Rule
from ..schedule.schedule import Schedule
from ..sites.tokens import cluster_tokens
from ..step import TINY
from .fit import build_schedule

FEW = 8  # prompts for the errors of layers, which are means over layers too: they hardly differ by prompt
NEVER = 1e9  # no error is as large
RANK, CLUSTERS = 4, 4  # of ICC's matrices; groups of HyCa's channels
NUMBERS = 60_000  # that are fitted and kept in a schedule: a megabyte holds no more
RANGE = 3.0  # decades that the weight of a block may go up or down
HALVINGS = 6  # runs of all prompts that the threshold of gates takes


def fit_thresholds(errors: Mapping[str, np.ndarray], budget: float, **params: Any) -> tuple[Rule, ...]:
    """Returns a rule for each type of layer, with the threshold that comes nearest to a budget.

    Arguments:
        errors: By site, the error of reuse with shape (N, L): of step i at step i + 1 + k. Not finite where
            there is no such step.
        budget: The fraction of the layers that is computed, the mean over types.
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
            site: LocalError(errors=tuple(map(tuple, table.tolist())), threshold=threshold, **params)
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


def fit_layers(measurement: Measurement, name: str, budget: float, params: Mapping[str, Any]) -> tuple[Rule, ...]:
    """Returns the rules of ICC and LazyDiT, fitted to what enters layers; `ScheduleError` for too many numbers."""
    setup, prompts, profile = measurement.setup, measurement.prompts[:FEW], measurement.profile
    method, rest = find_method(name), {key: value for key, value in params.items() if key != "rank"}
    weights = profile.sensitivity * np.diagonal(profile.kernel)
    rules, rank, held = list[Rule](), params.get("rank", RANK), 0
    for rule in fit_rules(name, profile, budget=budget, **rest):
        with suppress(AttachError):  # a type of layers that is not there
            if method.forecast == "increment":
                fitted = fit_increments(setup, prompts, rule.site, rank)
                layers = tuple(Factors(down=tuple(map(tuple, a)), up=tuple(map(tuple, b))) for a, b in fitted)
                held += sum(a.size + b.size for a, b in fitted)
                rule = rule.model_copy(update={"forecast": Increment(layers=layers)})
            else:
                gates = fit_gates(setup, prompts, rule.site, weights)
                level = float(np.quantile(np.concatenate([said for _, said, _ in gates]), 1 - budget))
                linear = tuple(Linear(weights=tuple(w[:-1]), bias=float(w[-1]) - level) for w, *_ in gates)
                held += sum(len(gate.weights) for gate in linear)
                rule = rule.model_copy(update={"policy": Gate(gates=linear)})
            rules.append(rule)
    if not rules:
        raise AttachError(f"no layers for {method.sites}: {name} has nothing to skip")
    if held > NUMBERS:
        raise ScheduleError(
            f"{name} has {held:,} fitted numbers on this model, and a schedule holds {NUMBERS:,}: give a lower "
            "rank, or one site" if method.forecast == "increment" else
            f"{name} has {held:,} weights of gates on this model, and a schedule holds {NUMBERS:,}"
        )  # fmt: skip
    return spend(setup, prompts, tuple(rules), budget) if method.policy == "gate" else tuple(rules)


class SiteCounter(Runner):
    """Counts at how many steps each site is computed."""

    computed: tuple[int, ...] = ()

    def on_run_end(self) -> None:
        super().on_run_end()
        self.computed += tuple(map(len, self.site_steps().values()))


def spend(setup: Setup, prompts: PromptSet, rules: tuple[Rule, ...], budget: float) -> tuple[Rule, ...]:
    """Returns the rules with the threshold by which runs compute a fraction of their layers: bisection of its logit.

    Gates see other inputs where layers are skipped than in full runs, and the worst sample of a batch decides.
    """
    low, high = -8.0, 8.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        threshold = 1 / (1 + math.exp(-middle))
        rules = tuple(
            rule.model_copy(update={"policy": rule.policy.model_copy(update={"threshold": threshold})})
            for rule in rules
        )
        counter = SiteCounter(Schedule(name="gates", rules=rules), gear=0)
        for batch in prompts.batches(setup.batch_size):
            setup.run(counter, batch)
        share = np.mean(counter.computed) / setup.call.num_inference_steps
        low, high = (middle, high) if share > budget else (low, middle)
    return rules


class OutputHook(StepHook):
    """Keeps the guided outputs of a full run."""

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []
        self.config: Mapping[str, Any] = {}
        self.entered: Tensor | None = None  # the latents before the first step

    def install(self, gate: Any) -> AbstractContextManager[Any]:
        self.config = getattr(gate.denoisers[0], "config", {})
        return super().install(gate)

    def model_output(self, step: SchedulerStep) -> Tensor:
        if step.track == 0:
            self.entered = step.x if self.entered is None else self.entered
            self.outputs.append(step.u.detach().float().cpu())
        return step.u


def fit_channels(measurement: Measurement, rule: Rule, groups: int) -> Rule:
    """Returns HyCa's rule: k-means of the channels by how each changes in one run, and the solvers of the groups."""
    hook, profile = OutputHook(), measurement.profile
    measurement.setup.run(hook, measurement.prompts[:1])
    runs = torch.stack(hook.outputs)[:, 0]  # (N, L, C) or (N, C, *)
    u = runs.movedim(-1, 1).flatten(2) if runs.ndim == 3 else runs.flatten(2)  # (N, C, M)
    dynamics = (u.diff(dim=0).norm(dim=2) / u.norm(dim=2).mean(0).clamp_min(TINY)).T  # (C, N - 1)
    labels = cluster_tokens(dynamics[None], min(groups, len(dynamics)))[0].unique(return_inverse=True)[1]
    plan = replay(rule.policy, profile)
    forecast = group_channels(u.double().numpy(), profile.sensitivity, plan, labels.tolist())
    return rule.model_copy(update={"forecast": forecast})


def count_frames(setup: Setup, prompts: PromptSet) -> int | None:
    """Returns of how many frames the tokens of a denoiser are; None where its latents have none of their own."""
    hook = OutputHook()
    setup.run(hook, prompts[:1])
    if hook.entered is None or hook.entered.ndim != 5:
        return None
    size = hook.config.get("patch_size_t") or hook.config.get("patch_size") or 1
    patch = size[0] if isinstance(size, (tuple, list)) else size if hook.config.get("patch_size_t") else 1
    return int(hook.entered.shape[2 if hook.entered.shape[1] == hook.config.get("in_channels") else 1]) // patch


# Plans for each block or layer, by what reuse of each is off by; optuna sees in runs what errors do together.


def fit_tables(
    measurement: Measurement, method: str, budget: float, sites: Sequence[str], trials: int = 0
) -> tuple[Rule, ...]:
    """Returns rules with a row of steps for each block or layer, from errors of reuse of each in full runs.

    Of several sites those that the denoiser does not have are left out.

    Arguments:
        method: `block-caching` and `profilingdit` have rules of their own; what others trained or searched is
            planned (`cheapest_rows`), under a budget of measured time.
        budget: The fraction of the blocks, or of their time, that is computed.
        sites: "blocks", or types of layers.
        trials: How many plans optuna runs; none takes the planner's as it is.
    """
    setup, prompts, profile = measurement.setup, measurement.prompts[:FEW], measurement.profile
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


def check_params(name: str, params: Mapping[str, Any]) -> None:
    """Raises `LookupError` where a fit of a method takes no such parameter."""
    method = find_method(name)
    kinds = (POLICIES[method.policy], FORECASTS[method.forecast])
    known = {field for kind in kinds for field in (*kind.model_fields, *inspect.signature(kind.fit).parameters)}
    known -= {"type", "budget", "profile", "plan", "params", kinds[0].fitted}
    known |= {"increment": {"rank"}, "channels": {"clusters"}}.get(method.forecast, set())
    if method.policy == "table":
        known = {"site", "trials"}
        find_name("site of blocks or layers", params.get("site", "blocks"), ("blocks", *LAYERS))
    elif method.policy == "local-error" and method.site != "step":
        known = {"longest", "first", "cool_down"}
    for key in params.keys() - known:
        find_name(f"parameter of {name}, which is fitted,", key, sorted(known))


def fit_method(
    measurement: Measurement, method: str, budget: float, params: Mapping[str, Any] | None = None
) -> Schedule:
    """Fits a published method.

    Methods with a threshold get the one that spends the budget on the calibration prompts, those with an
    interval get the interval. Methods for types of layers with errors of their own (SmoothCache) get these
    errors from one more full run.

    Arguments:
        measurement: On calibration prompts; the papers take one to a hundred.
        method: A name that `adaptcache methods` lists.
        budget: Fraction of the calls that are made; of layers: of all of a type.
    """
    setup, prompts, profile = measurement.setup, measurement.prompts, measurement.profile
    chosen, own = find_method(method), dict(params or {})
    check_params(method, own)
    if chosen.policy == "table":
        sites = [own["site"]] if "site" in own else [part.site for part in chosen.parts]
        rules = fit_tables(measurement, method, budget, sites, own.get("trials", 0))
    elif chosen.forecast == "increment" or chosen.policy == "gate":
        rules = fit_layers(measurement, method, budget, own)
    elif chosen.policy == "local-error" and chosen.site != "step":
        own = {"longest": 3, "first": False, "cool_down": 1, **own}
        errors = layer_errors(setup, prompts[:FEW], [part.site for part in chosen.parts], longest=own.pop("longest"))
        rules = fit_thresholds(errors, budget, **own)
    else:
        if chosen.policy == "codebook" and "frames" not in own:
            own["frames"] = count_frames(setup, prompts)
        groups = own.pop("clusters", CLUSTERS)
        rules = fit_rules(method, profile, budget=budget, **own)
        if any(rule.tokens and rule.tokens.score == "position" for rule in rules):
            scores = {"scores": fit_positions(setup, prompts[:FEW])}
            rules = tuple(
                rule.model_copy(update={"tokens": rule.tokens.model_copy(update=scores)}) if rule.tokens else rule
                for rule in rules
            )
        if chosen.forecast == "channels":
            rules = (fit_channels(measurement, rules[0], groups),)
    return build_schedule(setup, profile, rules, {"prompts": len(prompts), "method": method}, method)
