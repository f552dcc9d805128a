"""Requests of a serving engine that follow schedules: which one, a history for each request, and what is counted.

An engine's plug-in says where a step begins and where the guided output leaves it. Nothing else of the engine is
known here, and nothing of diffusers. A request that does not fit runs in full, and is counted with the reason.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch.distributed as dist
from torch import Tensor

from ..errors import LoopError, ScheduleError
from ..files import locate
from ..hooks import SchedulerStep
from ..hub import CONFIG
from ..runtime.runner import Runner
from ..schedule.findings import ONE_OUTPUT, too_strong
from ..schedule.format import same_grid
from ..schedule.schedule import Schedule
from ..step import Step

REASONS, OTHERS = 16, "other reasons"  # that are counted apart
QUALITIES = ("fast", "balanced", "exact")
SOURCE, QUALITY, STRICT = "ADAPTCACHE_SCHEDULE", "ADAPTCACHE_QUALITY", "ADAPTCACHE_STRICT"


@dataclass(frozen=True)
class ServingConfig:
    """How an engine is switched on."""

    # a schedule file, a folder of schedules, or a repository of the hub ("user/repo", "user/repo@revision")
    source: str
    # what requests run in that ask for nothing: "fast", "balanced", "exact", or the number of a gear; None leaves it
    # to the schedule
    quality: Any = None
    strict: bool = False  # whether requests run in full where they differ from the calibration at all

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> ServingConfig | None:
        """Returns what settings say (`schedule`, `quality`, `strict`), then environment variables; None where neither
        names a schedule."""
        source = settings.get("schedule") or os.environ.get(SOURCE)
        qualities = settings.get("quality"), os.environ.get(QUALITY)  # 0 is a gear
        strict = settings.get("strict", os.environ.get(STRICT, "0"))
        if not source:
            return None
        quality = next((one for one in qualities if one not in (None, "")), None)
        return cls(str(source), quality, str(strict).lower() not in ("", "0", "false", "no"))


def load_schedules(source: str) -> list[Schedule]:
    """Returns the schedules that a setting names.

    Raises:
        HubError: The repository cannot be had.
        ScheduleError: There is no schedule, or one that skips parts of the denoiser.
    """
    path = locate(source)
    if path.is_dir():
        found = [Schedule.load(file) for file in (*sorted(path.glob("*.json")), *sorted(path.glob(f"*/{CONFIG}")))]
        if not found:
            raise ScheduleError(f"{path} has no schedule: put files that `adaptcache calibrate` writes there")
    else:
        is_file = path.suffix == ".json" or path.is_file()  # whose name may have an @
        repo, _, revision = (source, "", "") if is_file else source.partition("@")
        found = [Schedule.from_pretrained(repo, revision=revision or None)]
    for schedule in found:
        if sites := [rule.site for rule in schedule.rules if rule.site != "step"]:
            raise ScheduleError(
                f"{schedule.name} skips parts of the denoiser ({', '.join(sites)}), and serving engines whole steps "
                "only: calibrate one for the site 'step'"
            )
        if schedule.reads_branches:
            raise ScheduleError(f"{schedule.name} {ONE_OUTPUT.format(where='serving engines')}")
    return found


@dataclass
class Metrics:
    """What a server did since it was started."""

    requests: int = 0  # requests that came to an end, or were aborted
    computed: int = 0  # steps whose denoiser was called
    skipped: int = 0  # steps that were forecast
    extrapolated: int = 0  # requests that ran by a schedule in a way that was not measured
    exact: int = 0  # requests that asked for all steps
    aborted: int = 0  # requests that ended before their last step
    # requests that ran in full as they do not fit, by reason: the first ones that came up, and `OTHERS`, as clients
    # can ask for anything
    refused: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        reasons = "".join(f"; {count} in full: {why}" for why, count in self.refused.most_common())
        return (
            f"{self.requests} requests, {self.computed} steps computed, {self.skipped} skipped, "
            f"{self.extrapolated} extrapolated, {self.exact} exact, {self.aborted} aborted{reasons}"
        )


@dataclass(frozen=True)
class RequestCall:
    """How a request is called, as far as it is compared with the calibration."""

    # how strongly branches are set apart: 1 without guidance; None where it is not known
    guidance: float | None = None
    embedded: float | None = None  # the guidance a distilled denoiser is given as an input; None for others
    # height, width, number of frames, `guidance_rescale`: by diffusers' names
    settings: Mapping[str, Any] = field(default_factory=dict)
    scheduler: str = ""  # the class of the scheduler
    branches: float = 1.0  # how many samples the denoiser is called with for each of the latents: 2 with guidance

    def differences(self, schedule: Schedule) -> tuple[list[str], bool]:
        """Returns how this call differs from that of the calibration, and whether so much that plain steps win."""
        made = schedule.made.get("call") or {}
        mixed = "true_cfg_scale" if "true_cfg_scale" in made or self.embedded is not None else "guidance_scale"
        before = {"guidance_rescale": 0.0, **made}
        now = {**self.settings, mixed: none_is_one(self.guidance)}
        before[mixed] = none_is_one(made.get(mixed, 1.0 if mixed == "true_cfg_scale" else None))
        if self.embedded is not None:
            now["guidance_scale"] = self.embedded
        pairs = {name: (before.get(name), value) for name, value in now.items()}
        pairs = {name: (a, b) for name, (a, b) in pairs.items() if a is not None and b is not None and a != b}
        says = [f"{name} {a} and now {b}" for name, (a, b) in pairs.items()]
        if self.scheduler and schedule.grid.scheduler not in ("", self.scheduler):
            says.append(f"{schedule.grid.scheduler} and now {self.scheduler}")
        return says, mixed in pairs and too_strong(*pairs[mixed])


def world_size() -> int:
    """Returns how many processes run the denoiser."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def none_is_one(guidance: Any) -> float | None:
    """Returns a guidance as a number: 1 and less is none."""
    try:
        return None if guidance is None else max(1.0, float(guidance))
    except (TypeError, ValueError):
        return None


class Server:
    """The schedules of one model, known by the class of its denoiser, and what its requests did.

    `log` writes a line into the engine's log; `known` are the schedules that the configuration names, if loaded.
    """

    def __init__(
        self, config: ServingConfig, denoiser: str, log: Callable[[str], None], known: Sequence[Schedule] = ()
    ) -> None:
        first = not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
        self.config, self.denoiser, self.log = config, denoiser, log if first else lambda line: None
        everything = known or load_schedules(config.source)
        self.schedules = [one for one in everything if one.denoiser.class_name in ("", denoiser)]
        self.metrics, self.idle = Metrics(), dict[tuple[int, int | None], list[Runner]]()
        names = ", ".join(one.name for one in self.schedules)
        fitted = ", ".join(sorted({one.denoiser.class_name for one in everything}))
        self.log(
            f"adaptcache: {denoiser} runs by {names or f'no schedule: those of {config.source} are for {fitted}'}"
        )

    def choose(self, times: tuple[float, ...]) -> Schedule | None:
        """Returns the schedule for a grid: one of the same times, else of as many steps, else the first."""

        def distance(schedule: Schedule) -> int:
            known = schedule.grid.times
            return 0 if not known or same_grid(known, times) else 1 if len(known) == len(times) else 2

        return min(self.schedules, key=distance, default=None)

    def gear(self, schedule: Schedule, quality: Any) -> int | None:
        """Returns the gear of a quality; None leaves it to the schedule.

        Raises:
            ScheduleError: There is no such quality or gear.
        """
        if quality is None:
            return None
        if quality in QUALITIES:
            return {"fast": 0, "balanced": schedule.gears // 2}[quality]
        try:
            return schedule.check_gear(int(quality))
        except (ValueError, TypeError, LookupError, OverflowError):
            words = ", ".join(QUALITIES)
            given, last = f"{quality!r:.40}", schedule.gears - 1
            raise ScheduleError(f"no quality {given}: {words}, or a gear from 0 to {last}") from None

    def take(self, schedule: Schedule, gear: int | None) -> Runner:
        """Returns a runner that no other request has."""
        idle = self.idle.setdefault((id(schedule), gear), [])
        return idle.pop() if idle else Runner(schedule, self.config.strict, gear)

    def put_back(self, runner: Runner, gear: int | None) -> None:
        """Takes a runner back, and frees its history."""
        runner.on_run_end()
        self.idle[id(runner.original), gear].append(runner)


class Request:
    """One request under way. Steps are numbered by the engine, or counted.

    Arguments:
        quality: What it asks for; None takes what the server is set to.
        name: What it is called in the log.
        refused: Why it runs in full, where that is known beforehand.
        alone: Whether one process runs the denoiser: only then may a schedule decide by what it sees.
    """

    def __init__(
        self, server: Server, quality: Any = None, name: str = "", refused: str = "", alone: bool = True
    ) -> None:
        self.server, self.name, self.reason, self.alone = server, name, refused, alone
        self.quality = server.config.quality if quality is None else quality
        self.runner: Runner | None = None
        self.gear: int | None = None
        self.times: tuple[float, ...] = ()
        self.past: tuple[int, ...] = ()
        self.decided: list[bool] = []
        self.open = self.loops = 0  # whether a step has begun and not ended; loops so far
        self.entered: Tensor | None = None  # what entered the denoiser at the first step
        self.steps, self.branches = Counter[bool](), 1.0
        self.evidence = ""

    @property
    def index(self) -> int:
        """The number of the step under way, or of the last one."""
        return len(self.decided) - 1

    def start(self, times: Sequence[float], call: RequestCall) -> None:
        """A loop starts, on a grid of times with shape (N,): chooses a schedule, or notes why there is none."""
        self._release()
        self.times, self.loops, self.branches = tuple(times), self.loops + 1, call.branches
        if self.quality == "exact" or self.reason or len(self.times) < 2:
            return
        try:
            self._follow(call)
        except ScheduleError as error:
            self._release()
            self.refuse(str(error))

    def _follow(self, call: RequestCall) -> None:
        server = self.server
        if (schedule := server.choose(self.times)) is None:
            raise ScheduleError(f"no schedule for {server.denoiser}")
        differ, far = call.differences(schedule)
        if far or (differ and server.config.strict):
            raise ScheduleError(f"{schedule.name} was fitted with {', '.join(differ)}")
        self.gear = server.gear(schedule, self.quality)
        runner = self.runner = server.take(schedule, self.gear)
        if not self.alone and not runner.schedule.rules[0].policy.static:
            shared = "decides during the run, which several processes share: ask for a gear"
            raise ScheduleError(f"{schedule.name} {shared}")
        runner.on_call_start(measured=not differ)
        runner.on_run_start(self.times)
        if self.decided:  # engines that tell the grid by their first step have begun it
            runner.should_compute(Step(0, self.times, x=self.entered))
        if self.loops > 1:
            runner._not_measured("runs its denoising loop several times in one request")
        self.evidence = runner.evidence

    def refuse(self, reason: str) -> None:
        """Computes every step from now on."""
        self.reason = self.reason or reason

    def begin(self, x: Tensor | None = None) -> bool:
        """A step begins: returns whether to call the denoiser. Some schedules look at what enters it, `x`.

        Raises:
            LoopError: The step before was skipped and has not ended: what was returned for it is no output.
        """
        if self.open:
            self.lost("calls its denoiser twice in a step")
            return True
        if self.times and len(self.decided) == len(self.times):  # another loop of the same request
            self.restart()
        index, self.open = len(self.decided), 1
        following = self.runner is not None and not self.reason
        self.entered = None if index else x
        step = Step(index, self.times, self.past, x=x)
        self.decided.append(not following or self.runner.should_compute(step))  # type: ignore[union-attr]
        return self.decided[-1]

    def end(self, x: Tensor | tuple[Tensor, ...], u: Any) -> Any:
        """A step ends: returns the model output that the scheduler is to use.

        Arguments:
            x: The latents before the step, with shape (B, *); a tuple where several are denoised side by side.
            u: The guided output, likewise; it means nothing where the step was skipped.
        """
        computed, self.open = self.decided[-1], 0
        self.steps[computed] += 1
        many = isinstance(u, tuple)
        if many != isinstance(x, tuple):
            self.refuse("its denoiser returns other parts than the latents have")
        if self.runner is not None and not (self.reason and computed):
            pairs = zip(x, u, strict=True) if many else [(x, u)]
            outputs = tuple(self._output(track, *pair) for track, pair in enumerate(pairs))
            u = outputs if many else outputs[0]
        if computed:
            self.past = (self.index, *self.past)
        return u

    def _output(self, track: int, x: Tensor, u: Tensor) -> Tensor:
        where = Step(self.index, self.times, self.past, track=track)
        step = SchedulerStep(where, track, 0, self.decided[-1], x, u)
        step.branches = self.branches
        assert self.runner is not None
        try:
            return self.runner.model_output(step)
        except ScheduleError as error:
            if not step.computed:
                raise
            self.refuse(str(error))  # a strict server: this request is not what was calibrated
            return u

    def lost(self, what: str) -> None:
        """The loop does what cannot be followed: from here on every step is computed.

        Raises:
            LoopError: The step under way was skipped.
        """
        if not self.decided[-1]:
            raise LoopError(f"the loop of this request {what}, and step {self.index} was skipped: run it as 'exact'")
        self.refuse(f"the loop {what}")

    def moved(self, expected: int) -> None:
        """The engine is at another step than the one that was counted: from here on nothing can be forecast."""
        if expected != self.index:
            self.lost(f"is at step {expected} where {self.index} was expected")

    def restart(self) -> None:
        """Another loop begins."""
        self.decided, self.past, self.open = [], (), 0

    def _release(self) -> None:
        if self.runner is not None:
            self.evidence = self.runner.evidence
            self.server.put_back(self.runner, self.gear)
            self.runner = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.close(failed=kind is not None)

    def close(self, failed: bool = False) -> None:
        """The request is over, or was aborted: frees its history, counts it, and writes a line into the log."""
        self._release()
        metrics, all_steps = self.server.metrics, sum(self.steps.values())
        metrics.requests += 1
        metrics.computed += self.steps[True]
        metrics.skipped += self.steps[False]
        if not all_steps and not self.reason and not failed:
            self.refuse("its loop does not go through what the plug-in wraps")
        if failed or (self.decided and len(self.decided) < len(self.times)):
            metrics.aborted += 1
        if self.quality == "exact":
            metrics.exact += 1
        elif self.reason:
            kept = self.reason in metrics.refused or len(metrics.refused) < REASONS
            metrics.refused[self.reason if kept else OTHERS] += 1
        elif self.evidence == "extrapolated":
            metrics.extrapolated += 1
        how = "exact" if self.quality == "exact" else f"in full: {self.reason}" if self.reason else self.evidence
        name = f" {self.name}" if self.name else ""
        made = f"computed {self.steps[True]} of {all_steps} steps"
        self.server.log(f"adaptcache: request{name} {made} ({how or 'none'})")
        self.server.log(f"adaptcache: {metrics}")
