"""Schedules from theory: plan and weights for one grid, sampler and budget, without one run of the model."""

import hashlib
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real

import numpy as np

from ..cache import Cache
from ..errors import ScheduleError
from ..fitting.affine import AffineSampler, build_sampler
from ..fitting.instant import Instant, find_instant, instant
from ..fitting.signals import LEAST
from ..fitting.worlds import PRIOR
from ..forecasts.matched import Matched
from ..limits import STEPS
from ..policies.plan import Plan
from ..policies.signals import SignalSpec
from .format import Grid, same_grid
from .rule import Rule
from .schedule import THEORY, Schedule

VERSION = 3  # of the theory: what is kept on disk by another one is made anew
CALLS = 8  # fewer computed steps than these are not agreed to: on demo models as few plain steps were better there
GUIDED_CALLS = 10  # the same with guidance


@dataclass(frozen=True)
class InstantRequest:
    """What an instant schedule is made for."""

    times: tuple[float, ...]  # the N times of the run in [0, 1], falling
    speed: float  # steps over computed steps, 1 or more
    sampler: AffineSampler
    guidance: float = 1.0  # the scale of classifier-free guidance; 1 for none
    variance: float = 1.0  # the mean square of the data, in the units of the latents
    scheduler: str = ""  # the name of the scheduler's class

    def __post_init__(self) -> None:
        object.__setattr__(self, "speed", check_speed(self.speed))
        object.__setattr__(self, "guidance", float(self.guidance))  # of numpy, or whole
        if len(self.times) != len(self.sampler):
            raise ScheduleError(f"{len(self.times)} times do not fit a sampler of {len(self.sampler)} steps")
        if len(self.times) > STEPS:
            raise ScheduleError(f"a schedule has at most {STEPS} steps, got {len(self.times)}")

    @property
    def calls(self) -> int:
        """How many computed steps are asked for."""
        return max(1, round(len(self.times) / self.speed))

    @property
    def least(self) -> int:
        """How many computed steps theory needs at least, to be better than as many plain steps."""
        return min(len(self.times), CALLS if self.guidance == 1 else GUIDED_CALLS)

    def make(self, calls: int, history: int = 4, plan: Sequence[int] | None = None) -> Instant:
        """Returns plan and weights for a number of calls, or the weights of a plan."""
        return instant(self.sampler, calls, guidance=self.guidance, variance=self.variance, history=history, plan=plan)

    @property
    def key(self) -> str:
        """A digest of all that plan and weights depend on."""
        parts = (self.sampler.alphas, self.sampler.sigmas, self.sampler.data, self.sampler.maps, np.array(self.times))
        rest = (VERSION, PRIOR, CALLS, GUIDED_CALLS, self.speed, self.guidance, self.variance, self.scheduler)
        digest = hashlib.sha256(repr(rest).encode())
        for part in parts:
            digest.update(np.round(part, 6).tobytes())
        return digest.hexdigest()[:32]


def check_speed(speed: float) -> float:
    """Returns a speed, if it is a finite number of 1 or more; `ValueError` for others."""
    if isinstance(speed, bool) or not isinstance(speed, Real) or not 1 <= speed < float("inf"):
        raise ValueError(f"speed is how many times fewer denoiser calls are made, 1 or more, got {speed!r}: take 2")
    return float(speed)


def sampler_of(times: Sequence[float], sampler: str | AffineSampler) -> AffineSampler:
    """Returns a sampler by its name on a grid of flow matching, which ends at no noise."""
    if isinstance(sampler, AffineSampler):
        return sampler
    if not len(times) or times[-1] <= 0:
        raise ValueError("times are those before each step, one or more, without the 0 at the end: leave that out")
    return build_sampler(np.append(np.asarray(times, dtype=float), 0.0), sampler)


def make_instant(request: InstantRequest) -> Schedule:
    """Makes the schedule; where theory does not hold at the speed asked for, that of the largest at which it does."""
    n = len(request.times)
    options = {"guidance": request.guidance, "variance": request.variance}
    made = find_instant(request.sampler, max(request.calls, request.least), **options)
    speed = n / len(made.plan)
    name = f"instant-{n}-{speed:.3g}x"
    return Schedule(
        name=name,
        grid=Grid(scheduler=request.scheduler, times=request.times),
        rules=(build_rule(made, request.times),),
        made={
            "evidence": THEORY,
            "asked speed": request.speed,
            "guidance": request.guidance,
            "expected lead over as many plain steps, dB": round(made.lead, 1),
        },
    )


def warn_of_less(schedule: Schedule, request: InstantRequest) -> Schedule:
    """Returns the schedule; warns where its speed is less than what was asked for, whenever it was made."""
    n, calls = len(request.times), len(schedule.steps())
    if calls > request.calls:
        warnings.warn(
            f"an instant schedule of {n} steps at {request.speed:g}x would make {request.calls} denoiser calls, where "
            f"theory is not sure to be better than as many plain steps: it makes {calls} ({n / calls:.3g}x); "
            "calibrate for more",
            stacklevel=3,
        )
    return schedule


def build_rule(made: Instant, times: tuple[float, ...]) -> Rule:
    """Returns an instant schedule as a rule, with what a guard looks at."""
    matching = made.matching
    specs = tuple(
        SignalSpec(rows=(row,), band=(float(np.log10(LEAST)), high))
        for row, (_, high) in zip(matching.looks, made.bands, strict=True)
    )
    plan = Plan.of(made.plan, times).model_copy(update={"signal_specs": (specs,)})
    rows = tuple(tuple(float(f"{weight:.8g}") for weight in row) for row in matching.rows)
    return Rule(policy=plan, forecast=Matched(table=((rows,),)))


def load_instant(request: InstantRequest, cache: Cache | None = None) -> Schedule:
    """Returns the schedule from the cache, or makes it and keeps it there where that can be written."""
    path = None
    with suppress(OSError, ScheduleError):  # no home, no right to look there, no whole file
        path = (cache or Cache()).folder / "instant" / f"{request.key}.json"
        found = Schedule.load(path) if path.exists() else None
        if found and found.from_theory and same_grid(found.grid.times, request.times):
            return warn_of_less(found, request)
    schedule = warn_of_less(make_instant(request), request)
    with suppress(OSError):
        if path:
            schedule.save(path)
    return schedule
