"""Compares schedules with other methods: same prompts, noise, grid and dtype, in one process.

Every method is run at its best. All its settings are tried on the calibration prompts that our schedules are
fitted on, and for each budget the best one that stays at or below it is measured on held-out prompts.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from ..calibration.calibrate import calls_for, warn_of_known
from ..calibration.fit import fit_schedule
from ..engines import make_setup, take
from ..engines.diffusers.engine import DiffusersEngine, twin
from ..evaluation.generate import reference_images
from ..evaluation.validate import evidence_of
from ..profile import Profile
from ..profiling.measure import measure
from ..runs import Progress, Prompt, PromptSet, Setup, listed, whole
from ..runtime.runner import Runner
from ..schedule.methods import METHODS, find_name
from ..schedule.schedule import Schedule
from .baselines import BASELINES, Baseline, Case, Params, Ready, find_baseline
from .runner import FULL, ComparisonRunner, Cost, MethodResult, lead_over
from .scorer import CaptionScore
from .trial import MacCounter, pipe_of

OURS = "adaptcache"
RANDOM = ("Ancestral", "SDE", "DDPM", "LCM", "TCD", "KarrasVe", "ScoreSdeVe")
KEYS = {"params": "knobs", "caption_score": "shown"}  # what the files call fields of results


@dataclass(frozen=True)
class Comparison:
    """The results of all methods, and the images behind them."""

    steps: int  # steps of the full run
    held_out: int  # prompts everything was measured on
    swept: int  # calibration prompts the settings were tried on
    results: list[MethodResult]  # one for each budget and method
    costs: list[Cost]  # what each method cost before its first use
    left_out: dict[str, str]  # measures that were not taken, and why
    # decoded images of the full run, under "full run", and of each method and budget
    images: dict[str, list[np.ndarray]]
    schedules: dict[float, Schedule]  # our schedules, by budget

    def data(self) -> dict[str, Any]:
        """Returns all numbers as plain values."""
        rows = [{KEYS.get(k, k): value for k, value in asdict(result).items()} for result in self.results]
        return {
            "steps": self.steps, "held_out": self.held_out, "swept": self.swept, "lines": rows,
            "costs": [asdict(cost) for cost in self.costs], "left_out": self.left_out,
        }  # fmt: skip


@dataclass(frozen=True)
class CompareOptions:
    """What is compared, and how."""

    methods: Sequence[str] = ()  # names of methods; none means all
    sweep_on: int | None = None  # calibration prompts to choose settings of other methods on; None takes all of them
    refine: int = 0  # also compare with a run of so many times the steps; below 2 there is none
    caption_score: CaptionScore | None = None  # measures how well images show what their captions say

    def __post_init__(self) -> None:
        object.__setattr__(self, "methods", listed("methods", self.methods))
        for name in ("sweep_on", "refine"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, whole(name, value))


def find_methods(names: Sequence[str]) -> list[str]:
    """Returns the methods with these names, those that settings are known for where none is given.

    Raises:
        LookupError: There is no such method.
    """
    known = [OURS, *BASELINES, *METHODS]
    for name in names:
        find_name("method", name, known)
    return [name for name in known if name in names] or [OURS, *BASELINES]


def compare(
    pipe: Any,
    prompts: Iterable[Prompt],
    eval_prompts: Iterable[Prompt],
    budgets: Sequence[float],
    num_inference_steps: int = 28,
    **options: Any,
) -> Comparison:
    """Measures our schedules and other methods at the same budgets.

    Arguments:
        pipe: A diffusers pipeline; it is not changed.
        prompts: Prompts that schedules are fitted on, and that other methods are calibrated and chosen on.
        eval_prompts: Prompts that everything is measured on.
        budgets: Fractions of the denoiser calls.
        num_inference_steps: Steps of the full run.
        options: Of the comparison (see `CompareOptions`): `methods`, `sweep_on`, `refine`, `caption_score`;
            of the runs, as for `calibrate`: `seed`, `batch_size` (methods that decide during a run have one
            prompt in it), `cache_dir` (for the images of many steps), `progress`; arguments of the pipeline.

    Example:
        >>> compared = adaptcache.compare(pipe, prompts, others, [0.36, 0.25], methods=["adaptcache", "L2P"])
        >>> for result in compared.results:
        ...     print(result.method, result.budget, result.psnr, result.lead)
    """
    chosen, budgets = take(CompareOptions, options), listed("budgets", budgets)
    find_methods(chosen.methods)
    known = [*vars(chosen), "prompts", "eval_prompts", "budgets", "num_inference_steps"]
    setup = make_setup(pipe, num_inference_steps, options, "compare", known)
    pipe_of(setup)
    calibration = PromptSet.of(prompts)
    held_out = PromptSet.of(eval_prompts, len(calibration), "eval_prompts")
    setup.engine.preflight(setup.call, calibration)
    if not min(len(calibration), len(held_out), chosen.sweep_on is None or chosen.sweep_on > 0):
        given = f"{len(calibration)}, {len(held_out)} and {chosen.sweep_on}"
        raise ValueError(f"prompts, eval_prompts and sweep_on have to be one or more, got {given}")
    warn_of_known(calibration, held_out, 4)
    allowed = {budget: calls_for(setup.call.num_inference_steps, budget) for budget in budgets}
    return compare_methods(setup, calibration, held_out, allowed, chosen)


def compare_methods(
    setup: Setup, prompts: PromptSet, eval_prompts: PromptSet, allowed: Mapping[float, int], chosen: CompareOptions
) -> Comparison:
    """Compares methods at so many denoiser calls by budget."""
    names = find_methods(chosen.methods)
    profiled, ours = [name for name in names if name != OURS and find_baseline(name).profiled], Ours()
    if OURS in names or profiled:
        ours = Ours.fit(setup, prompts, allowed if OURS in names else {})
    alone = replace(setup, engine=DiffusersEngine(twin(pipe_of(setup)), exclusive=True))
    plans = {allowed[budget]: schedule.steps() for budget, schedule in ours.schedules.items()}
    case = Case(alone, prompts[: chosen.sweep_on], tuple(allowed.values()), plans, ours.profile)
    runner, left_out = ComparisonRunner(case, eval_prompts, chosen.caption_score), {}
    if chosen.refine > 1 and (why := why_never_exact(case.pipe.scheduler)):
        left_out["exact"] = why
    elif chosen.refine > 1:
        call = replace(setup.call, num_inference_steps=case.steps * chosen.refine)
        runner.exact = reference_images(replace(setup, call=call), eval_prompts)
    results, costs, schedules = [runner.score(FULL, 1.0, runner.full)], list[Cost](), dict[float, Schedule]()
    profiling, work = ({k: v / runner.call_work for k, v in part.items()} for part in (ours.profiling, ours.work))
    for budget, schedule in ours.schedules.items():
        results.append(runner.measure_setting(ours, budget, {"plan": schedule.steps()}))
        evidence = evidence_of(
            results[-1].each, len(schedule.steps()), len(schedule.grid.times), ssim=results[-1].ssim
        )
        schedules[budget] = schedule.model_copy(update={"evidence": evidence})
    if OURS in names:
        costs.append(Cost(OURS, work))
    for name in names:
        if name != OURS:
            found, cost = runner.measure(find_baseline(name), allowed)
            results += found
            if cost:
                own = profiling if name in profiled else {}
                costs.append(replace(cost, calibration=own | cost.calibration))
    order = {budget: place for place, budget in enumerate([1.0, *allowed])}
    results = sorted(with_leads(results), key=lambda result: order[result.budget])
    return Comparison(
        case.steps, len(eval_prompts), len(case.prompts), results, costs, left_out, runner.images, schedules
    )


def with_leads(results: Sequence[MethodResult]) -> list[MethodResult]:
    """Returns the results of other methods with our lead at the same budget."""
    ours = {result.budget: result.each for result in results if result.method == OURS}
    return [
        replace(result, lead=lead_over(ours[result.budget], result.each))
        if result.method != OURS and result.each and result.budget in ours
        else result
        for result in results
    ]


def why_never_exact(scheduler: Any) -> str | None:
    """Returns why more steps do not come nearer to one solution, or None where they do."""
    name, config = type(scheduler).__name__, scheduler.config
    noisy = str(config.get("algorithm_type", "")).startswith("sde") or config.get("stochastic_sampling")
    if noisy or any(part in name for part in RANDOM):
        return f"{name} draws noise at each step: there is no exact solution to compare with"
    return None


class CostTracker:
    """Counts the work between reports of progress, by their stage."""

    def __init__(self, counter: MacCounter, progress: Progress) -> None:
        self.counter, self.progress, self.booked = counter, progress, 0.0
        self.work: dict[str, float] = defaultdict(float)

    def report(self, stage: str, done: int, of: int) -> None:
        """Books the work since the last report; "matching 7 calls" is booked as matching."""
        self.book(re.sub(r" \d+ calls$", "", stage))
        self.progress(stage, done, of)

    def book(self, stage: str) -> None:
        """Adds the work since the last booking to a stage."""
        self.work[stage] += self.counter.work - self.booked
        self.booked = self.counter.work


@dataclass(frozen=True)
class Ours(Baseline):
    """Our schedules, run as the other methods are."""

    name = OURS
    about = "schedules fitted on the calibration prompts"

    profile: Profile | None = None  # what was measured on the calibration prompts; None where no method needs it
    profiling: Mapping[str, float] = field(default_factory=dict)  # the work that took, by stage
    # one for each budget; none where ours are not compared
    schedules: Mapping[float, Schedule] = field(default_factory=dict)
    work: Mapping[str, float] = field(default_factory=dict)  # the work they took, the profile's included, by stage

    @classmethod
    def fit(cls, setup: Setup, prompts: PromptSet, allowed: Mapping[float, int]) -> "Ours":
        """Measures the profile and fits a schedule for each budget; nothing is taken from the cache."""
        with MacCounter(pipe_of(setup)) as counter:
            costs = CostTracker(counter, setup.progress)
            setup = replace(setup, cache=None, progress=costs.report)
            measurement = measure(setup, prompts)
            profiling = dict(costs.work)
            fitted = {budget: fit_schedule(measurement, calls) for budget, calls in allowed.items()}
            costs.book(next(reversed(costs.work)))  # what came after the last report
        return cls(measurement.profile, profiling, fitted, dict(costs.work))

    @contextmanager
    def apply(self, case: Case, params: Params) -> Iterator[Ready]:
        chosen = next(one for one in self.schedules.values() if one.steps() == params["plan"])
        yield Ready(case.setup.call, Runner(chosen, gear=0))
