"""The artifact: a schedule is a small JSON file that says when to compute and what to use instead.

Schedules come from strangers, so they are parsed strictly: unknown keys, unknown formats, numbers
that are not finite, grids that do not fall and more of anything than `adaptcache.limits` are errors.
"""

import html
import itertools
from collections.abc import Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from .. import hub
from ..errors import ScheduleError
from ..forecasts.matched import Matched
from ..limits import LOOPS, first_fault
from ..policies.gears import Gears
from ..policies.plan import Plan
from .format import Denoiser, Evidence, Grid, Kernel, Name, Part, check_made, read_artifact, same_run
from .methods import METHODS, build_rules
from .rule import LAYERS, Rule

# 2 has weights at computed steps, own times, and in the evidence baseline, precision floor and matrix; 3 has forecasts
# that use what guidance is made of.
FORMATS = 1, 2, 3
THEORY = "from theory, not measured on this model"  # the evidence of instant schedules
LARGEST = 2**20  # bytes; real schedules have about 20 thousand


class LoopPlan(Part):
    """What one of several denoising loops of a call goes by: the chunks of a clip, the stages of a pyramid."""

    grid: Grid  # the steps it was fitted on
    rules: Annotated[tuple[Rule, ...], Field(min_length=1, max_length=8)]  # what to do, by site

    @model_validator(mode="after")
    def _tables_fit(self) -> Self:
        check_tables(self.grid, self.rules)
        return self


def check_tables(grid: Grid, rules: Sequence[Rule]) -> None:
    """Raises where weights do not fit the grid and the plan."""
    n = len(grid.times)
    for rule in rules:
        if not isinstance(rule.forecast, Matched):
            continue
        if not n:
            raise ValueError("a matched forecast needs the grid that it was fitted on")
        for gear, tracks in enumerate(rule.forecast.table):
            skipped = set(range(n)) - set(rule.steps(grid.times, gear) or ())
            if any(len(rows) != n or any(not rows[i] for i in skipped) for rows in tracks):
                raise ValueError(f"gear {gear}: weights are missing for some of the {n} steps")
            if rule.site != "step" and any(rows[i] for rows in tracks for i in set(range(n)) - skipped):
                raise ValueError(f"gear {gear}: computed steps have weights at the site 'step' alone")


class Schedule(Part):
    """A fitted schedule.

    Arguments:
        name: What it is called.
        denoiser: What it was fitted on.
        grid: The steps it was fitted on.
        rules: What to do, by site.
        loops: Where a call has several denoising loops: what each of them goes by, in order, instead of `grid` and
            `rules`. Loops after the last one go by the last that has their grid.
        kernel: What is needed to plan anew for another grid.
        evidence: How good it is on held-out prompts.
        made: Where it came from: versions, seed, call. Read back only to say what differs.

    Example:
        >>> schedule = Schedule.load("schedules/emoji-flux-32-28-2.8x.json")
        >>> with adaptcache.attach(pipe, schedule):
        ...     image = pipe("a lighthouse").images[0]
    """

    name: Name
    denoiser: Denoiser = Denoiser()
    grid: Grid = Grid()
    rules: Annotated[tuple[Rule, ...], Field(min_length=1, max_length=8)]
    loops: Annotated[tuple[LoopPlan, ...], Field(max_length=LOOPS)] = ()
    kernel: Kernel | None = None
    evidence: Evidence | None = None
    made: Annotated[dict[str, Any], AfterValidator(check_made)] = Field(default_factory=dict)

    @field_validator("rules")
    @classmethod
    def _sites_do_not_overlap(cls, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
        sites = [rule.site for rule in rules]
        groups = [rule for rule in rules if rule.site == "blocks"]
        spans = itertools.pairwise(sorted(rule.span or (0.0, 1.0) for rule in groups))
        once = [site for site in sites if site != "blocks"]
        # Layers of different types lie side by side, and a call that is not made skips nothing inside.
        layers = set(LAYERS) - {"mlp"} | {"tokens"} if "tokens" in sites else set(LAYERS)
        apart = set(sites) <= {"guidance"} | layers or len(set(sites)) == 1
        if not apart or len(once) > len(set(once)) or any(front[1] > rear[0] for front, rear in spans):
            raise ValueError(f"the sites overlap: {', '.join(sites)}; keep one rule")
        if len(groups) > 1 and any(rule.signal in ("modulated", "residual") for rule in groups):
            raise ValueError("groups of blocks decide by the 'input' or by nothing: one may skip a probe")
        return rules

    @model_validator(mode="after")
    def _tables_fit(self) -> Self:
        n = len(self.grid.times)
        if self.grid.full and self.rules[0].steps(self.grid.times) != list(range(n)):
            raise ValueError("a schedule with own times computes at all of them")
        check_tables(self.grid, self.rules)
        return self

    @property
    def left(self) -> int:
        """How many steps at the end of its grid the runs did not take that it was fitted on."""
        left = self.made.get("left", 0)
        return left if isinstance(left, int) and left > 0 else 0

    def loop_plan(self, number: int, times: tuple[float, ...]) -> LoopPlan | None:
        """Returns what the loop of a call with a number, from 0, goes by on a grid; None where nothing was fitted."""
        own = self.loops[number : number + 1]
        known = [plan for plan in (*own, *reversed(self.loops)) if same_run(times, plan.grid.times, self.left)]
        return known[0] if known else None

    @property
    def corrects(self) -> bool:
        """Whether computed steps have weights too."""
        rule = self.rules[0]
        return isinstance(rule.forecast, Matched) and any(
            rows[i]
            for gear, tracks in enumerate(rule.forecast.table)
            for rows in tracks
            for i in rule.steps(self.grid.times, gear) or ()
        )

    @property
    def reads_branches(self) -> bool:
        """Whether its forecast uses the outputs with the prompt too, before guidance."""
        return any(rule.forecast.keeps_branches for rule in self.rules)

    @property
    def format(self) -> int:
        """The oldest version of the format that can say this."""
        seen = self.evidence
        more = seen and (seen.baseline or seen.precision_floor or seen.matrix)
        if self.reads_branches:
            return 3
        return 2 if self.corrects or self.grid.full or self.loops or more else 1

    @model_validator(mode="before")
    @classmethod
    def _known_format(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        rest = dict(data)
        if (version := rest.pop("format", 1)) not in FORMATS:
            raise ValueError(f"has format {str(version)[:40]}; known are {', '.join(map(str, FORMATS))}")
        return rest

    @model_serializer(mode="wrap")
    def _with_format(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data = handler(self)
        return {"format": self.format, **{name: data[name] for name in data if name != "loops" or self.loops}}

    @property
    def gears(self) -> int:
        """How many plans there are to choose from."""
        return self.rules[0].gears

    @property
    def plans(self) -> list[list[int]]:
        """The computed steps of each gear on the grid it was fitted on; empty where the run decides."""
        times, rule = self.grid.times, self.rules[0]
        steps = (rule.steps(times, gear) for gear in range(self.gears if times else 0))
        return [plan for plan in steps if plan]

    def steps(self, gear: int = 0, times: tuple[float, ...] | None = None) -> list[int]:
        """Returns the numbers of the steps that are computed, rising.

        Arguments:
            gear: Which plan, negative ones counted from the end.
            times: Falling times of another grid than that it was fitted on.

        Raises:
            LookupError: There is no such gear.
            ScheduleError: The policy decides by what it sees in a run, or it needs to be told the grid.
        """
        times = self.grid.times if times is None else tuple(map(float, times))
        if not times:
            raise ScheduleError(f"{self.name} is for any number of steps; say for which times")
        found = self.rules[0].steps(times, self.check_gear(gear))
        if found is None:
            policy = self.rules[0].policy.type
            raise ScheduleError(
                f"{self.name} decides during the run (policy {policy!r}) and has no plan: take a schedule with one"
            )
        return found

    @property
    def from_theory(self) -> bool:
        """Whether it is an instant schedule: made for a grid, and measured on no model."""
        return self.made.get("evidence") == THEORY

    def check_gear(self, gear: int) -> int:
        """Returns the number of a gear, negative ones counted from the end; `LookupError` for others."""
        if not isinstance(gear, Integral) or not -self.gears <= gear < self.gears:
            raise LookupError(f"no gear {gear!r}: {self.name} has {self.gears} (0 to {self.gears - 1})")
        return int(gear) % self.gears

    def resolve_gear(self, gear: int | None, guard: bool = False) -> tuple[Self, int]:
        """Returns the schedule as it is to be run, and the gear of runs in which none is chosen.

        Arguments:
            gear: The gear to stay in, negative ones counted from the end; None leaves it to the policy.
            guard: Whether to compare innovations with their bands.

        Raises:
            LookupError: There is no such gear.
            ScheduleError: The schedule has nothing that the guard could look at.
        """
        rule = self.rules[0]
        policy = rule.policy
        chooses = rule.chooses and gear is None
        # On another grid nothing is known of the prompt: a schedule that chooses is safest in its slowest gear.
        number = self.check_gear(-1 if chooses else gear or 0)
        if guard and not rule.guarded:
            raise ScheduleError(
                f"{self.name} has nothing for the guard to look at; `adaptcache calibrate` writes that"
            )
        if guard:
            assert isinstance(policy, Plan)
            policy = policy.model_copy(update={"guard": True}) if chooses else Gears.staying(policy, number, True)
        elif isinstance(policy, Gears) and not chooses:
            policy = Plan(gears=policy.gears)
        if policy is rule.policy:
            return self, number
        return self.model_copy(update={"rules": (rule.model_copy(update={"policy": policy}),)}), number

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        """Yields what identifies it, for `repr`, `str` and rich: a table of weights is no use there."""
        yield "name", self.name
        rule, plans = self.rules[0], self.plans
        yield "rule", f"{rule.site}: {rule.policy.type}, {rule.forecast.type}"
        if plans:
            yield "calls", f"{', '.join(str(len(plan)) for plan in plans)} of {self.grid.steps}"
        elif self.evidence:
            yield "calls", "{} of {}".format(*self.evidence.calls)
        if self.loops:
            counts = (f"{len(plan.rules[0].steps(plan.grid.times) or ())}/{plan.grid.steps}" for plan in self.loops)
            yield "loops", ", ".join(counts)
        if self.denoiser.class_name:
            yield "denoiser", self.denoiser.class_name[:100]
        if seen := self.evidence:
            proof = ", with a certificate" if seen.certificate else ""
            yield "evidence", f"{seen.psnr['mean']:.1f} dB on {seen.n} prompts{proof}"
        else:
            yield "evidence", self.made.get("evidence")

    def _repr_html_(self) -> str:
        """Returns a table with a strip a plan, for notebooks."""
        steps = range(len(self.grid.times))
        strips = ["".join("█" if i in plan else "·" for i in steps) for plan in self.plans]
        rows = [*self.__repr_args__(), *(("plan", strip) for strip in strips)]
        cells = (f"<tr><th>{name}</th><td>{html.escape(str(value))}</td></tr>" for name, value in rows)
        return f"<table>{''.join(cells)}</table>"

    @classmethod
    def of(cls, method: str, **params: Any) -> Self:
        """Returns the schedule of a published method, for any pipeline it can run on.

        Arguments:
            method: Its name, as `adaptcache methods` lists it.
            params: What the method lets one set: a threshold, an interval, ...

        Example:
            >>> schedule = Schedule.of("teacache", model="flux", threshold=0.25)
        """
        return cls(name=method, rules=build_rules(method, **params))

    @classmethod
    def instant(
        cls, times: Sequence[float], speed: float = 2.0, *, sampler: Any = "euler", guidance: float = 1.0
    ) -> Self:
        """Makes a schedule from theory, in a second and without one run of a model.

        At speeds at which theory does not hold it is the fastest one at which it does; a warning says so.

        Arguments:
            times: The N times of a run of flow matching (its sigmas), falling, without the 0 at the end.
            speed: How many times fewer denoiser calls are made.
            sampler: "euler", "ddim", "dpm++2m", or an `adaptcache.fitting.affine.AffineSampler` of these N steps.
            guidance: The scale of classifier-free guidance; 1 for none.

        Raises:
            ValueError: Times that do not fall from at most 1, a speed below 1, or an unknown sampler.

        Example:
            >>> schedule = Schedule.instant(pipe.scheduler.sigmas[:-1].tolist(), speed=2)
        """
        from .instant import InstantRequest, make_instant, sampler_of, warn_of_less

        grid = tuple(map(float, times))
        request = InstantRequest(grid, speed, sampler_of(grid, sampler), guidance)
        return cls.model_validate(dict(warn_of_less(make_instant(request), request)))

    def collapse(self, gear: int = 0) -> "Schedule":
        """Returns a schedule whose runs have a step for each call of a plan's and end where that plan's runs end.

        For denoisers of a few milliseconds: the time that the pipeline and its scheduler take at skipped steps is
        saved. It is for runs whose latents are not looked at in between, and whose steps are not counted.

        Arguments:
            gear: Which plan, negative ones counted from the end.

        Raises:
            LookupError: There is no such gear.
            ScheduleError: It has no plan with matched weights, or not for Euler's sampler of flow matching.

        Example:
            >>> with adaptcache.attach(pipe, schedule.collapse()):
            ...     image = pipe("a lighthouse").images[0]  # 10 steps instead of 28
        """
        from .replan import collapse

        return collapse(self, gear)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a schedule; `ScheduleError` says what is wrong with it."""
        data = read_artifact(path, "schedule", "calibrate", LARGEST)
        if not isinstance(data, dict) or "rules" not in data:
            raise ScheduleError(f"{path} is not a schedule: it has no 'rules'; `adaptcache calibrate` writes one")
        if (version := data.get("format")) not in FORMATS or isinstance(version, bool):
            raise ScheduleError(
                f"{path} has format {str(version)[:40]}, this adaptcache reads {FORMATS[0]} to {FORMATS[-1]}: "
                "update adaptcache, or calibrate again"
            )
        try:
            schedule = cls.model_validate(data)
        except ValidationError as error:
            raise ScheduleError(f"{path}: {first_fault(error, 'schedule')}") from None
        if schedule.format > version:
            raise ScheduleError(f"{path} says format {version} and holds what format {schedule.format} brought")
        return schedule

    def save_pretrained(self, folder: str | Path, *, name: str | None = None, repo: str | None = None) -> Path:
        """Writes the schedule into a folder, and the card and plot of all schedules there.

        Arguments:
            folder: The folder; what else is in it stays.
            name: Tells schedules of one folder apart; None is the default one.
            repo: What the card says it is loaded from; None says the folder's name.

        Returns:
            The file of the schedule.
        """
        return hub.save_pretrained(self, folder, type(self).load, name=name, repo=repo)

    @classmethod
    def from_pretrained(cls, source: str | Path, name: str | None = None, **options: Any) -> Self:
        """Loads a schedule from a file, a folder or the hub.

        Arguments:
            source: A file, a folder, or a repository of the hub ("user/repo").
            name: Which schedule of it; None takes the default one.
            options: `subfolder`; `revision`, `token`, `cache_dir`, `local_files_only` as in diffusers.

        Raises:
            HubError: It cannot be had; the message says why and what helps.
            ScheduleError: What is there is no schedule.
        """
        if str(source) in METHODS and not Path(source).exists():
            raise ScheduleError(f"{source} is a method, no file: Schedule.of({str(source)!r}) makes its schedule")
        return cls.load(hub.find_file(source, name, **options))

    def push_to_hub(self, repo: str, *, name: str | None = None, message: str | None = None, **options: Any) -> str:
        """Puts the schedule and a model card into a repository of the hub; returns the commit's address.

        Arguments:
            repo: The repository ("user/repo"); it is created where there is none.
            name: Tells schedules of one repository apart; None is the default one.
            message: What the commit says.
            options: `token`, `private`, `revision`, `create_pr`: as in diffusers.
        """

        def save(folder: Path) -> Path:
            return self.save_pretrained(folder, name=name, repo=repo)

        message = message or f"Upload {self.name} with adaptcache"
        return hub.push_to_hub(save, repo, commit_message=message, **options)
