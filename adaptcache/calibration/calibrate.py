"""From prompts to a schedule in one call: profile, plan, match, validate."""

import hashlib
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..cache import feed
from ..engines import make_setup, take
from ..evaluation.certify import QualityTarget, refuse_unaimed
from ..evaluation.validate import measure_matrix, validate
from ..limits import check_name
from ..profiling.measure import measure
from ..runs import Prompt, PromptSet, Setup, check_numbers, listed, plain, whole
from ..schedule.schedule import Schedule
from .fit import fit_loops, fit_schedule
from .gears import fit_gears, prove_gears
from .match import Fit
from .methods import check_params, fit_method
from .own import fit_own_times
from .search import EFFORT


def calls_for(steps: int, budget: float | None = None, speed: float | None = None) -> int:
    """Returns how many of the steps are computed for a budget or a speed; exactly one must be given."""
    if (budget is None) == (speed is None):
        raise ValueError("give either a budget (fraction of the calls, say 0.36) or a speed (say 2.8)")
    if steps < 2:
        raise ValueError(f"nothing can be skipped in {steps} step; take 2 or more")
    if budget is None:
        assert speed is not None
        if not 1 <= speed <= steps:
            raise ValueError(f"speed must be in [1, {steps}] for {steps} steps, got {speed:g}")
        budget = 1 / speed
    if not 0 < budget <= 1:
        raise ValueError(f"budget must be in (0, 1], got {budget:g}: it is the fraction of the calls that are made")
    return max(1, round(budget * steps))


@dataclass(frozen=True)
class Goal:
    """What a calibration is asked for, checked before anything is run.

    Arguments:
        speed: All calls over calls made, 1 or more.
        budget: Fraction of the calls that are made, in (0, 1]; instead of `speed`.
        gears: Budgets of several plans, among which each run chooses by what it sees; instead of `speed`.
        method: A published method, fitted as its paper does it; None fits our own.
        min_psnr: Decibels against the full run that a prompt should reach, for gears and certificates.
        max_failure_rate: The share of prompts that may stay below it.
        confidence: How sure a certificate has to be.
        certify: Test this on the held-out prompts. A schedule that does not pass computes everything, and
            says why.
        groups: The subject of each held-out prompt: variants of one subject count once in a certificate.
        reference_steps: Steps of the reference, a multiple of the steps: above them the schedule corrects the
            sampler's own error as well.
        fit: What the forecast may use.
        name: What the schedule is called.
        effort: Full runs of one prompt that the search of a plan may cost; 0 takes the planner's first proposal.
        times: "own": the schedule has noise levels of its own instead of steps of the grid, so that a run is as many
            steps as calls; "grid": all steps of the grid are there, and some are skipped.
        matrix: Measures it at other steps, guidance and sizes too: True, or the arguments that differ, by cell.
        params: Fields of the method's policy and forecast that are not fitted.
    """

    speed: float | None = None
    budget: float | None = None
    gears: Sequence[float] = ()
    method: str | None = None
    min_psnr: float | None = None
    max_failure_rate: float = 0.05
    confidence: float = 0.95
    certify: bool = False
    groups: Sequence[str] = ()
    reference_steps: int | None = None
    fit: Fit = Fit()
    name: str | None = None
    params: dict[str, Any] | None = None
    effort: float = EFFORT
    times: Literal["grid", "own"] = "grid"
    matrix: bool | Sequence[Mapping[str, Any]] = False

    def __post_init__(self) -> None:
        for name in ("gears", "groups"):
            object.__setattr__(self, name, listed(name, getattr(self, name)))
        if not isinstance(self.fit, Fit):
            raise TypeError(f"fit must be a Fit, got {self.fit!r:.40}: adaptcache.Fit(history=4) is one")
        check_numbers(self, "gears", "speed", "budget", "min_psnr", "max_failure_rate", "confidence", "effort")
        if not isinstance(self.matrix, bool):
            cells = [self.matrix] if isinstance(self.matrix, Mapping) else self.matrix or ()
            object.__setattr__(self, "matrix", tuple(map(plain, cells)))
        if self.reference_steps is not None:
            object.__setattr__(self, "reference_steps", whole("reference_steps", self.reference_steps))

    def refine(self, steps: int) -> int:
        """Returns the steps of the reference in each step of the grid."""
        refine, rest = divmod(steps if self.reference_steps is None else self.reference_steps, steps)
        if rest or refine < 1:
            raise ValueError(f"reference_steps must be a multiple of the {steps} steps, got {self.reference_steps}")
        return refine

    def target(self, held_out: int) -> QualityTarget | None:
        """Returns what is to be reached, None where nothing was asked for; `ValueError` if that cannot be shown."""
        if self.min_psnr is None:
            if self.certify or self.gears:
                raise ValueError("gears and certificates need a target: min_psnr (--min-psnr), say 35 decibels")
            refuse_unaimed(self.max_failure_rate, self.confidence)
            return None
        if not (self.certify or self.gears):
            raise ValueError(
                f"a target of {self.min_psnr:g} dB needs something that can meet it: gears (--gears 0.18,0.25,0.36), "
                "a certificate (--certify), or `adaptcache tune`"
            )
        target = QualityTarget(self.min_psnr, self.max_failure_rate, self.confidence)
        if self.certify:
            target.check_enough(held_out, self.groups)
        return target

    def gear_calls(self, steps: int) -> list[int]:
        """Returns how many steps each gear computes, rising."""
        if self.budget is not None or self.speed is not None:
            raise ValueError("give gears, a budget or a speed, and not two of them")
        if self.refine(steps) > 1 or self.effort != EFFORT:
            raise ValueError(
                "gears are fitted against the full run, and no plan is searched: leave reference_steps and effort out"
            )
        if bad := [gear for gear in self.gears if not 0 < gear <= 1]:
            raise ValueError(f"the budget of a gear must be in (0, 1], got {bad[0]:g}; say 0.18,0.25,0.36,0.5")
        calls = sorted({max(1, round(gear * steps)) for gear in self.gears})
        if len(calls) < 2:
            raise ValueError(f"gears need two budgets or more that differ in {steps} steps, got {len(calls)}")
        if calls[0] < 2:
            raise ValueError(
                f"a gear with {calls[0]} call in {steps} steps shows nothing of a prompt before it is too late: "
                f"take budgets of {2 / steps:.2g} and more"
            )
        return calls

    def check(self, steps: int, prompts: PromptSet, held_out: PromptSet, processes: int = 1) -> None:
        """Raises what would come up after work: `ValueError` or, of methods and sites, `LookupError`."""
        if self.method:
            check_params(self.method, self.params or {})
            others = {"gears": self.gears, "certify": self.certify, "reference steps": self.reference_steps,
                      "effort": self.effort != EFFORT, "fit (branches)": self.fit != Fit()}  # fmt: skip
            if given := " and ".join(name for name, value in others.items() if value):
                raise ValueError(f"a published method is fitted as it is: give {self.method}, or {given}, not both")
        elif self.params:
            raise ValueError(f"params {self.params!r:.40} are of a published method, and none is named (method)")
        if self.groups and len(self.groups) != len(held_out):
            raise ValueError(
                f"{len(self.groups)} groups for {len(held_out)} held-out prompts: give the subject of each of them"
            )
        self.target(len(held_out))
        self.refine(steps)
        if self.gears:
            self.gear_calls(steps)
            if len(prompts) == 1:
                raise ValueError(
                    "gears are told apart by what prompts show: give 2 calibration prompts or more, say 16"
                )
        else:
            calls_for(steps, self.budget, self.speed)
        if self.name:
            check_name(self.name)
        if self.matrix and not len(held_out):
            raise ValueError("a matrix is measured on held-out prompts: give eval_prompts (--eval-on)")
        if self.times not in ("grid", "own"):
            raise ValueError(f"times must be 'grid' or 'own', got {self.times!r:.40}")
        if self.times == "own" and (self.gears or self.method):
            raise ValueError("own times are searched for one plan: leave out gears and method")
        if not 0 <= self.effort < math.inf:
            raise ValueError(f"effort must be 0 or more full runs of one prompt, got {self.effort:g}")
        own = self.times == "own"
        alone = {"matrices": self.matrix, "own times": own, "gears": self.gears, "published methods": self.method}
        for what, asked in alone.items():
            if asked and processes > 1:
                raise ValueError(f"{what} are made in one process, not in {processes}: start without a launcher")
        if self.certify:
            check_distinct(prompts, held_out)
        else:
            warn_of_known(prompts, held_out, 5)


def check_distinct(prompts: PromptSet, held_out: PromptSet) -> None:
    """Raises where a held-out prompt comes twice, or was calibrated on: it shows nothing new."""
    seen: dict[str, str] = {}
    for what, rows in (("calibration", prompts), ("held-out", held_out)):
        for number, row in enumerate(rows):
            text = digest_of(row)
            here = f"{what} prompt {number}"
            if what == "held-out" and text in seen:
                raise ValueError(
                    f"{here} is the same as {seen[text]} ({str(row)[:60]!r}): a certificate speaks of new prompts; "
                    "leave one of the two out"
                )
            seen.setdefault(text, here)


def warn_of_known(prompts: PromptSet, held_out: PromptSet, stacklevel: int) -> None:
    """Warns where held-out prompts were calibrated on, or come twice: evidence of them is of other noise alone."""
    known, seen, same, twice = set(map(digest_of, prompts)), set[str](), list[Prompt](), list[Prompt]()
    for row in held_out:
        text = digest_of(row)
        same, twice = same + [row] * (text in known), twice + [row] * (text in seen - known)
        seen.add(text)
    for rows, what in ((same, "are calibration prompts"), (twice, "come more than once")):
        if rows:
            warnings.warn(
                f"{len(rows)} of {len(held_out)} held-out prompts {what} ({str(rows[0])[:60]!r}): what they show is "
                "no evidence for new prompts; give others as eval_prompts",
                stacklevel=stacklevel,
            )


def digest_of(row: Prompt) -> str:
    """Returns a digest of a prompt, the same for texts that differ in case and spaces alone."""
    digest, arguments = hashlib.sha256(), {"prompt": row} if isinstance(row, str) else dict(row)
    if isinstance(text := arguments.get("prompt"), str):
        arguments["prompt"] = " ".join(text.split()).casefold()
    feed(digest, arguments)
    return digest.hexdigest()


def calibrate(
    pipe: Any,
    prompts: Iterable[Prompt],
    num_inference_steps: int = 28,
    *,
    speed: float | None = None,
    eval_prompts: Iterable[Prompt] = (),
    **options: Any,
) -> Schedule:
    """Fits a schedule to a pipeline.

    Arguments:
        pipe: A diffusers pipeline, or an engine; it is not changed.
        prompts: Calibration prompts; 8 to 16 are enough. A text, or a mapping of arguments of one sample.
        num_inference_steps: The steps of the runs to be made faster.
        speed: All calls over calls made, 1 or more.
        eval_prompts: Held-out prompts to measure the quality on; none leaves the schedule without evidence.
        options: Of the goal (see `Goal`): `budget`, `gears`, `method`, `min_psnr`, `max_failure_rate`,
            `confidence`, `certify`, `groups`, `reference_steps`, `effort`, `times`, `matrix`, `fit`, `name`; of runs:
            `seed` (the noise of prompt number k is drawn with seed + k), `batch_size` (as many as fit are fastest),
            `cache_dir` (a folder or a `Cache` where full runs are kept, so that another target costs seconds),
            `ranks`, `progress` (a bar by default, False for none, or a function of stage, done and of); and arguments
            of the pipeline: `height`, `guidance_scale`, ..., here or together as `pipe_kwargs`, where also those go
            that its call does not name (`**kwargs`).

    Returns:
        The schedule, the same on all ranks; `save` it, or `attach` it.

    Example:
        >>> schedule = adaptcache.calibrate(pipe, prompts, 28, speed=2.8, height=512, width=512)
        >>> schedule.save("mine.json")
    """
    options["speed"] = speed
    goal = take(Goal, options)
    calibration = PromptSet.of(prompts)
    held_out = PromptSet.of(eval_prompts, len(calibration), "eval_prompts (held_out)")
    setup = make_setup(
        pipe, num_inference_steps, options, "calibrate", [*vars(goal), "num_inference_steps", "eval_prompts"]
    )
    goal.check(setup.call.num_inference_steps, calibration, held_out, setup.ranks.size)
    cells = () if isinstance(goal.matrix, bool) else goal.matrix
    for call in (setup.call, *(setup.call.changed(cell) for cell in cells)):
        for given in (calibration, held_out):
            setup.engine.preflight(call, given)
    return calibrate_for(setup, calibration, held_out, goal)


def calibrate_for(setup: Setup, prompts: PromptSet, held_out: PromptSet, goal: Goal) -> Schedule:
    """Fits a schedule for a goal that was checked."""
    target, setup = goal.target(len(held_out)), replace(setup, refine=goal.refine(setup.call.num_inference_steps))
    measurement = measure(setup, prompts)
    steps = measurement.profile.steps
    calls = 0 if goal.gears else calls_for(steps, goal.budget, goal.speed)
    if goal.gears:
        assert target
        schedule = fit_gears(measurement, goal.gear_calls(steps), target, goal.fit)
    elif goal.method:
        schedule = fit_method(measurement, goal.method, calls / steps, goal.params)
    else:
        fitted = fit_own_times if goal.times == "own" else fit_schedule
        schedule = fitted(measurement, calls, goal.fit, goal.effort)
        if schedule.made.get("several_loops") and goal.times == "grid" and setup.refine == 1:
            schedule = fit_loops(setup, prompts, schedule, goal.fit, goal.effort)
    if goal.name:
        schedule = schedule.model_copy(update={"name": goal.name})
    if goal.gears and len(held_out):
        schedule = prove_gears(setup, held_out, schedule, target if goal.certify else None, goal.groups)
    elif len(held_out):
        schedule = validate(setup, held_out, schedule, target=target, groups=goal.groups)
    if goal.matrix:
        schedule = measure_matrix(setup, held_out, schedule, None if goal.matrix is True else goal.matrix)
    return schedule
