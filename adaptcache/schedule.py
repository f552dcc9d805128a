"""The artifact: a schedule is a small JSON file that says when to compute and what to use instead.

Schedules come from strangers, so they are parsed strictly: unknown keys, unknown formats, numbers
that are not finite, grids that do not fall and more of anything than `adaptcache.files.limits` are errors.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias, Union

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from .certify import Certificate
from .clock import Step
from .errors import ScheduleError
from .files import dump_json, write_atomically
from .files.limits import KERNEL_STEPS, STEPS, checked_name, falling, parse_json, plain, read_bytes
from .forecasts import FORECASTS, Forecast
from .forecasts.matched import Matched
from .policies import POLICIES, Policy
from .policies.plan import Plan
from .sites.models import LAYERS
from .sites.signals import Signal

__all__ = ["FORMAT", "Denoiser", "Evidence", "Grid", "Kernel", "Rule", "Schedule"]

FORMAT = 1
LARGEST = 2**20  # bytes; real schedules have about 20 thousand

if TYPE_CHECKING:
    AnyPolicy: TypeAlias = Policy
    AnyForecast: TypeAlias = Forecast
else:  # parsed by their `type`
    AnyPolicy = Annotated[Union[tuple(POLICIES.values())], Field(discriminator="type")]  # noqa: UP007
    AnyForecast = Annotated[Union[tuple(FORECASTS.values())], Field(discriminator="type")]  # noqa: UP007
Time = Annotated[float, Field(ge=0, le=1)]
Times = Annotated[
    tuple[Time, ...],
    Field(min_length=1, max_length=STEPS),
    AfterValidator(falling),
]
Name = Annotated[str, AfterValidator(checked_name)]
Line = Annotated[str, Field(max_length=4096)]  # as long as a path may be
Site = Literal[
    "step", "blocks", "deep", "attention", "temporal-attention", "cross-attention", "mlp", "guidance"
]
Count = Annotated[int, Field(ge=0, le=2**53)]


def summarised(summary: dict[str, float]) -> dict[str, float]:
    """Returns the figures of a metric, if they are the two that are shown."""
    if summary.keys() != {"mean", "p05"}:
        raise ValueError("needs 'mean' and 'p05'")
    return summary


Summary = Annotated[dict[str, FiniteFloat], AfterValidator(summarised)]


class Part(BaseModel):
    """A part of a schedule: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Denoiser(Part):
    """What the schedule was fitted on.

    Arguments:
        class_name: The class of the denoiser; empty where nothing was fitted: any will do.
        config_hash: Digest of its configuration.
        weights_hash: Digest of a sample of its weights, LoRA included.
        checkpoint: Where the weights came from.
    """

    class_name: Line = Field("", alias="class")
    config_hash: Line = ""
    weights_hash: Line = ""
    checkpoint: Line = ""


class Grid(Part):
    """The steps it was fitted on: the scheduler's class, and N times in [0, 1], falling.

    Both are empty where nothing was fitted: the schedule runs on any grid.
    """

    scheduler: Line = ""
    times: Annotated[tuple[Time, ...], Field(max_length=STEPS), AfterValidator(falling)] = ()


class Rule(Part):
    """What to do at one site: when to compute, and what to use instead.

    Arguments:
        site: Where it skips. "step" is the whole guided output, "blocks" what the denoiser's blocks add to
            its hidden states, "deep" the inner part of a U-Net, "attention" and the like the outputs of
            all layers of a type, "guidance" the second denoiser call of a step; see docs/methods.md.
        policy: When to compute.
        forecast: What to use instead.
        head: How many of the first blocks are always run, as a probe, and left out of the site. Of a
            U-Net: how many layers on the way down, and as many and one on the way up.
        tail: How many of the last blocks are always run, and left out of the site.
        span: Which part of the blocks is skipped, by depth: (0, 0.5) is the front half.
        output: Whether what leaves the blocks is forecast, and not what they add.
        window: Skips only at times strictly between these two, whatever the policy says. If the first is
            the higher one: only at times outside of them.
    """

    site: Site = "step"
    policy: AnyPolicy
    forecast: AnyForecast
    head: Annotated[int, Field(ge=0)] = 0
    tail: Annotated[int, Field(ge=0)] = 0
    span: tuple[Time, Time] | None = None
    output: Literal[True] | None = None
    window: tuple[FiniteFloat, FiniteFloat] | None = None

    @property
    def signal(self) -> Signal:
        """What has to be given to the policy, or to the forecast if only that reads one."""
        return self.policy.signal if self.policy.signal != "none" else self.forecast.signal

    def computes(self, state: Any, step: Step) -> bool:
        """Whether to compute at this step: what the policy says, where skipping is allowed."""
        says = self.policy.compute(state, step)  # asked at every step, as it may keep count
        if says or self.window is None:
            return says
        low, high = self.window
        return not (low < step.t < high if low < high else step.t > low or step.t < high)

    @model_validator(mode="after")
    def _site_has_the_signal(self) -> Self:
        reads = self.signal in ("modulated", "residual")
        inside = self.head or self.tail or self.span or self.output or reads
        if self.site not in ("blocks", "deep") and inside:
            raise ValueError(
                f"the site {self.site!r} has no blocks, so no head, no tail and no {self.signal!r} signal: "
                "use the site 'blocks', or a policy on the 'input'"
            )
        if self.site == "deep" and (self.tail or self.span or self.output or reads):
            raise ValueError("the site 'deep' has a head and no tail, no span and no signal but the input")
        if self.site == "blocks" and self.signal == "residual" and not self.head:
            raise ValueError("the 'residual' signal is that of the head: give it a block or more")
        if self.span and (self.head or self.tail or self.span[0] >= self.span[1]):
            raise ValueError(f"the span {self.span} has to rise, and goes with no head and no tail")
        if self.site not in ("step", "blocks") and (
            self.forecast.keeps_latents or isinstance(self.forecast, Matched)
        ):
            raise ValueError(
                f"the site {self.site!r} keeps what left it and not what entered, which the forecast "
                f"{self.forecast.type!r} is made of; use 'extrapolate', 'taylor' or another one"
            )
        return self

    @model_validator(mode="after")
    def _gears_agree(self) -> Self:
        gears = len(self.policy.gears) if isinstance(self.policy, Plan) else 0
        if isinstance(self.forecast, Matched) and gears != len(self.forecast.table):
            raise ValueError("a matched forecast needs a plan with one gear for each table of weights")
        if self.policy.type == "gears" and self.site != "step":
            raise ValueError(f"gears are chosen at the site 'step', not at {self.site!r}")
        return self


class Kernel(Part):
    """Inner products of the guided outputs of a full run, from which it is planned anew on other grids.

    Arguments:
        times: N falling times.
        gram: Mean inner products with shape (N, N), after division by the mean norm.
        sensitivity: What an error at each step does to the end result, with shape (N,).
    """

    times: Times
    gram: Annotated[
        tuple[Annotated[tuple[FiniteFloat, ...], Field(max_length=KERNEL_STEPS)], ...],
        Field(max_length=KERNEL_STEPS),
    ]
    sensitivity: Annotated[tuple[Annotated[FiniteFloat, Field(ge=0)], ...], Field(max_length=KERNEL_STEPS)]

    @model_validator(mode="after")
    def _square(self) -> Self:
        n = len(self.times)
        if len(self.gram) != n or any(len(row) != n for row in self.gram) or len(self.sensitivity) != n:
            raise ValueError(f"the kernel of {n} times needs {n} x {n} products and {n} sensitivities")
        return self


class Evidence(Part):
    """What was measured on prompts that were not used for fitting.

    Arguments:
        prompts: The name of the prompt set.
        n: How many of its held-out prompts.
        calls: Steps whose denoiser is called, of all steps.
        psnr: Decibels against the full run with the same noise: mean, and 5th percentile over prompts.
        ssim: The same for structural similarity, where it was measured.
        speed: All steps over computed steps.
        certificate: What was tested of a quality target.
        verdict: Why nothing is skipped, where that is the result.
    """

    prompts: Line
    n: Count
    calls: tuple[Count, Count]
    psnr: Summary
    ssim: Summary | None = None
    speed: FiniteFloat
    certificate: Certificate | None = None
    verdict: Line | None = None


class Schedule(Part):
    """A fitted schedule.

    Arguments:
        name: What it is called.
        denoiser: What it was fitted on.
        grid: The steps it was fitted on.
        rules: What to do, by site.
        kernel: What is needed to plan anew for another grid.
        evidence: How good it is on held-out prompts.
        made: Where it came from: versions, seed, call. Read back only to say what differs.

    Example:
        >>> schedule = Schedule.load("schedules/emoji-flux-28-2.8x.json")
        >>> with adaptcache.attach(pipe, schedule):
        ...     image = pipe("a lighthouse").images[0]
    """

    format: Literal[1] = 1
    name: Name
    denoiser: Denoiser = Denoiser()
    grid: Grid = Grid()
    rules: Annotated[tuple[Rule, ...], Field(min_length=1, max_length=8)]
    kernel: Kernel | None = None
    evidence: Evidence | None = None
    made: Annotated[dict[str, Any], AfterValidator(plain)] = Field(default_factory=dict)

    @field_validator("rules")
    @classmethod
    def _sites_do_not_overlap(cls, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
        sites = [rule.site for rule in rules]
        groups = [rule for rule in rules if rule.site == "blocks"]
        spans = itertools.pairwise(sorted(rule.span or (0.0, 1.0) for rule in groups))
        once = [site for site in sites if site != "blocks"]
        # Layers of different types lie side by side, and a call that is not made skips nothing inside.
        apart = set(sites) <= {"guidance", *LAYERS} or len(set(sites)) == 1
        if not apart or len(once) > len(set(once)) or any(front[1] > rear[0] for front, rear in spans):
            raise ValueError(f"the sites overlap: {', '.join(sites)}; keep one rule")
        if len(groups) > 1 and any(rule.signal in ("modulated", "residual") for rule in groups):
            raise ValueError("groups of blocks decide by the 'input' or by nothing: one may skip a probe")
        return rules

    @model_validator(mode="after")
    def _tables_fit(self) -> Self:
        n = len(self.grid.times)
        for rule in self.rules:
            if not isinstance(rule.forecast, Matched) or not isinstance(rule.policy, Plan):
                continue
            for gear, tracks in enumerate(rule.forecast.table):
                skipped = set(range(n)) - set(rule.policy.steps(self.grid.times, gear))
                if any(len(rows) != n or any(not rows[i] for i in skipped) for rows in tracks):
                    raise ValueError(f"gear {gear}: weights are missing for some of the {n} steps")
        return self

    @classmethod
    def of(cls, method: str, **knobs: Any) -> Self:
        """Returns the schedule of a published method, for any pipeline it can run on.

        Arguments:
            method: Its name, as `adaptcache methods` lists it.
            knobs: What the method lets one set: a threshold, an interval, ...

        Example:
            >>> schedule = Schedule.of("teacache", model="flux", threshold=0.25)
        """
        from .methods import rules_of

        return cls(name=method, rules=rules_of(method, **knobs))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a schedule; `ScheduleError` says what is wrong with it."""
        try:
            data = parse_json(read_bytes(path, LARGEST))
        except OSError as error:
            raise ScheduleError(
                f"cannot read {path}: {error.strerror}; `adaptcache calibrate` writes one"
            ) from None
        except ValueError as error:
            raise ScheduleError(f"{path} is not JSON ({error}): is it a schedule file?") from None
        if not isinstance(data, dict) or "rules" not in data:
            raise ScheduleError(
                f"{path} is not a schedule: it has no 'rules'; `adaptcache calibrate` writes one"
            )
        if data.get("format") != FORMAT:
            raise ScheduleError(
                f"{path} has format {str(data.get('format'))[:40]}, this adaptcache reads {FORMAT}: "
                "update adaptcache, or calibrate again"
            )
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "schedule"
            raise ScheduleError(f"{path}: {where[:200]}: {first['msg'][:500]}") from None

    def save(self, path: str | Path) -> Path:
        """Writes the schedule, whole or not at all. The same schedule always gives the same bytes."""
        return write_atomically(path, dump_json(self.model_dump(by_alias=True, exclude_none=True)))

    def save_pretrained(self, folder: str | Path, *, name: str | None = None) -> Path:
        """Writes the schedule and a model card into a folder; see `adaptcache.hub.save_pretrained`."""
        from .hub import save_pretrained

        return save_pretrained(self, folder, name=name)

    @staticmethod
    def from_pretrained(source: str | Path, name: str | None = None, **options: Any) -> Schedule:
        """Loads a schedule from a folder or the hub; see `adaptcache.hub.from_pretrained`."""
        from .hub import from_pretrained

        return from_pretrained(source, name, **options)

    def push_to_hub(self, repo: str, *, name: str | None = None, **options: Any) -> str:
        """Puts the schedule and a model card on the hub; see `adaptcache.hub.push_to_hub`."""
        from .hub import push_to_hub

        return push_to_hub(self, repo, name=name, **options)
