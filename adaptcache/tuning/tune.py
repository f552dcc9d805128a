"""Tuning in one call: measure, search, choose, fit again, report."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..calibration.calibrate import check_distinct
from ..engines import make_setup, take
from ..fitting.plan import even_plan
from ..profiling.measure import content_key, measure
from ..runs import Prompt, PromptSet
from .evaluator import Candidate, CandidateEvaluator
from .front import Tuned, conclude
from .target import SearchOptions, Target

if TYPE_CHECKING:
    from .study import Search

TRIALS = {"": 120, "min_psnr": 80}  # by target; 40 for others
LAYOUT = 4  # raise it when trials of before mean something else


def tune(
    pipe: Any,
    prompts: Iterable[Prompt],
    num_inference_steps: int = 28,
    *,
    speed: float | None = None,
    eval_prompts: Iterable[Prompt] = (),
    **options: Any,
) -> Tuned:
    """Finds the schedule for a target, or the whole front, by trials on the pipeline.

    Weights are fitted on the first half of the prompts, schedules are chosen on the second half, and what is
    chosen is fitted again on both. Held-out prompts are only reported on. Several processes may call this
    with the same arguments and one storage, and share the trials.

    Arguments:
        pipe: A diffusers pipeline, or an engine; it is not changed.
        prompts: Calibration prompts, 2 or more; 16 are good.
        num_inference_steps: The steps of the runs to be made faster.
        speed: All calls over calls made. Give one target, or none for the whole front.
        eval_prompts: Held-out prompts to report on.
        options: Another target (see `Target`): `budget`, `max_calls`, `max_latency`, or `min_psnr` with
            `max_failure_rate` and `confidence`; of the search (see `SearchOptions`): `trials`, `timeout`,
            `storage`, `resume`, `groups`, `name`; of the runs, as for `calibrate`: `seed`, `batch_size`,
            `cache_dir`, `progress`; and arguments of the pipeline, here or as `pipe_kwargs`.

    Raises:
        ValueError: The target or another argument cannot be met; or there are trials and `resume` is False.

    Example:
        >>> tuned = adaptcache.tune(pipe, prompts, 28, speed=2.8, height=512, width=512)
        >>> tuned.schedule.save("mine.json")
    """
    search = begin(pipe, prompts, num_inference_steps, speed=speed, eval_prompts=eval_prompts, **options)
    search.run()
    return conclude(search)


def begin(pipe: Any, prompts: Any, steps: int, *, eval_prompts: Any = (), **options: Any) -> Search:
    """Returns a search that is ready to run; its arguments, those of `tune`, are checked before any run."""
    target, own = take(Target, options), take(SearchOptions, options)
    calibration = PromptSet.of(prompts)
    held_out = PromptSet.of(eval_prompts, len(calibration), "eval_prompts (held_out)")
    known = [*vars(target), *vars(own), "num_inference_steps", "eval_prompts"]
    setup = make_setup(pipe, steps, options, "tune", known)
    if setup.ranks.size > 1:
        raise ValueError("tune runs in one process: workers share a storage, they are no ranks")
    choices, half = target.choices(steps), (len(calibration) + 1) // 2
    if own.groups and len(own.groups) != len(held_out):
        raise ValueError(f"{len(own.groups)} groups for {len(held_out)} held-out prompts: give the subject of each")
    if target.quality:
        target.quality.check_enough(len(held_out), own.groups)
    if len(calibration) < 2:
        raise ValueError(f"{len(calibration)} prompts have no two halves: give 2 or more, 16 are good")
    check_distinct(calibration[:half], calibration[half:])
    check_distinct(calibration, held_out)
    for given in (calibration, held_out):
        setup.engine.preflight(setup.call, given)
    from .study import MoveSampler, Search, open_study, storing  # optuna is an extra

    about = [calibration.prompts, held_out.prompts if target.quality else (), repr(target), LAYOUT]
    study = open_study(f"adaptcache-{content_key(setup, *about)}", own, setup.cache)
    evaluator = CandidateEvaluator(setup, calibration, half, measure(setup, calibration))
    assert len(evaluator.truth)  # made now, and not again by each worker
    if target.max_latency is not None:
        if "calls" not in study.user_attrs:  # measured once
            with storing():
                study.set_user_attr("calls", find_calls(target.max_latency, evaluator))
        choices = (int(study.user_attrs["calls"]),)
    trials = own.trials or TRIALS.get(target.given, 40)
    if trials < (needed := 1 if target.quality else len(choices)):
        raise ValueError(f"the first {needed} trials are what calibrate finds, got {trials} trials")

    def find(calls: int) -> tuple[int, ...]:
        if (key := f"plan of {calls} calls") not in study.user_attrs:  # searched once
            study.set_user_attr(key, evaluator.choose_plan(calls))
        return tuple(study.user_attrs[key])

    sampler = MoveSampler(find, evaluator.measurement.profile, target, choices, trials, setup.call.seed)
    return Search(study, evaluator, sampler, own, held_out)


def find_calls(limit: float, evaluator: CandidateEvaluator) -> int:
    """Returns the most calls with which an image takes no longer than a limit in seconds, by bisection."""
    steps = evaluator.measurement.profile.steps

    def latency(calls: int) -> float:
        return evaluator.latency(evaluator.fit(Candidate(tuple(even_plan(steps, calls))))[0])

    if calls := bisect_right(range(1, steps + 1), limit, key=latency):
        return calls
    raise ValueError(f"one call takes {latency(1):.2f} s, so {limit:g} s cannot be met: take smaller images")
