"""What calibration begins with: full runs on the calibration prompts, or what was kept of them."""

from __future__ import annotations

import hashlib
import math
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from ..cache import feed
from ..distributed import Ranks
from ..errors import ScheduleError
from ..hooks import SchedulerStep
from ..limits import KERNEL_STEPS
from ..profile import Profile
from ..runs import PromptSet, Setup
from ..schedule.instant import InstantRequest
from ..step import Step
from .checkpoint import ProfileCheckpoint
from .reference import Replay, Trajectory, run_reference
from .statistics import build_profile, relative_error, statistics_of

PERTURBED = 2  # prompts the sensitivity is measured on: it takes half a run a step
LAYOUT = 7  # raise it when what is cached changes
LEAST = 1e-12  # relative energy of a forecast error that is only rounding


def content_key(setup: Setup, *more: Any) -> str:
    """Returns a digest of all that full runs depend on: the pipeline, its call, and what else is given."""
    digest, loop = hashlib.sha256(), [] if setup.loop is None else ["loop", setup.loop]
    feed(digest, [LAYOUT, setup.engine.identity(setup.call), setup.batch_size, *more, *loop])
    return digest.hexdigest()[:24]


@dataclass(frozen=True)
class Measurement:
    """What full runs on the calibration prompts gave, and who ran them: what a schedule is fitted with."""

    setup: Setup
    prompts: PromptSet
    profile: Profile  # statistics, sensitivities included
    # the reference trajectories, one a batch; of several ranks, each has those of its own batches
    runs: list[Trajectory] = field(default_factory=list)
    own: bool = False  # whether the times are a schedule's own, and the runs where the full ones came by at these
    # what an instant schedule is made for in these runs; None where theory knows nothing of them
    request: InstantRequest | None = None

    def head(self, count: int, first: int = 0) -> Measurement:
        """Returns what was measured on `count` prompts.

        They are the first ones, or begin elsewhere: with a run, or with what one run has.
        """
        profile, every, last = self.profile, len(self.prompts), first + count
        batch_size, ranks = self.setup.batch_size, self.setup.ranks
        names = ("gram", "magnitude", "change_in", "change_out", "sensitivities")
        parts = dict[int, Trajectory]()  # by the first prompt of a run
        begins = range(0, every, batch_size)
        for number, run in zip(ranks.own(len(begins)), self.runs, strict=True):
            begin = begins[number]
            end = min(begin + batch_size, every)
            if (start := max(begin, first)) < (stop := min(end, last)):
                parts[begin] = run.head(stop - start, of=end - begin, first=start - begin)
        if first:  # another rank may have them
            every_part = {begin: part for found in ranks.exchange(parts) for begin, part in found.items()}
            parts = {n: sorted(every_part.items())[n][1] for n in ranks.own(len(every_part))}
        cut = {name: getattr(profile, name)[first:last] for name in names}
        cut_profile = replace(profile, **cut)
        return replace(self, prompts=self.prompts[first:last], profile=cut_profile, runs=list(parts.values()))


def measure(setup: Setup, prompts: PromptSet) -> Measurement:
    """Profiles the pipeline on calibration prompts, or takes the profile from the cache."""
    steps = setup.call.num_inference_steps
    if steps < 2:
        raise ValueError("nothing can be skipped in a run of one step; calibrate with 2 or more")
    if steps > KERNEL_STEPS:
        raise ValueError(f"a schedule holds at most {KERNEL_STEPS} steps, got {steps}: take fewer")
    if not len(prompts):
        raise ValueError("no calibration prompts; one is the least, 8 or more are better")
    setup.engine.preflight(setup.call, prompts)
    ranks, checkpoint = setup.ranks, None
    if setup.cache:
        key = content_key(setup, prompts.prompts, prompts.first, setup.refine)
        checkpoint = ProfileCheckpoint(setup.cache, key, ranks.rank)
        if found := _known(setup, prompts, checkpoint):
            return replace(found, profile=note_latents(found), request=read_request(found))
    recorded = record(setup, prompts, checkpoint)
    profile = recorded.profile
    if setup.refine == 1:  # a finer reference's outputs cannot be replayed step by step
        few = min(PERTURBED, setup.batch_size, len(prompts))
        run = recorded.runs[0].head(few, of=min(setup.batch_size, len(prompts))) if ranks.rank == 0 else None
        profile = measure_sensitivity(setup, prompts[:few], profile, run, checkpoint)
    if checkpoint and ranks.rank == 0:
        checkpoint.save_profile(profile)
    measured = replace(recorded, profile=profile)
    return replace(measured, profile=note_latents(measured), request=read_request(measured))


def note_latents(measurement: Measurement) -> Profile:
    """Returns the profile with the shapes that the latents of one prompt had: other sizes were not measured."""
    found = measurement.setup.ranks.exchange([list(run.x[run.lead][0].shape[1:]) for run in measurement.runs])
    shapes = {tuple(shape): shape for one in found for shape in one}
    about = {**measurement.profile.about, "latents": [shapes[key] for key in sorted(shapes)]}
    return replace(measurement.profile, about=about)


class SamplerReader(Replay):
    """Replays a run, with one denoiser call, and reads its sampler."""

    follows_loops = False
    found: InstantRequest | None = None

    def __init__(self, run: Trajectory, engine: Any) -> None:
        super().__init__(run)
        self.engine = engine

    def install(self, gate: Any) -> AbstractContextManager[Any]:
        self.gate = gate
        return super().install(gate)

    def on_run_start(self, times: tuple[float, ...]) -> None:
        with suppress(ScheduleError):
            self.found = self.engine.read_run(self.gate, 1.0)


def read_request(measurement: Measurement) -> InstantRequest | None:
    """Returns what an instant schedule is made for in full runs; None where the sampler adds noise or is not known."""
    setup, prompts, runs = measurement.setup, measurement.prompts, measurement.runs
    if setup.refine > 1 or not hasattr(setup.engine, "read_run"):
        return None
    found = None
    if setup.ranks.rank == 0:
        reader = SamplerReader(runs[0].head(1, of=min(setup.batch_size, len(prompts))), setup.engine)
        report = setup.stage("reading the sampler", 1)
        setup.run(reader, prompts[:1])
        report(1)
        found = reader.found if reader.found and reader.found.times == runs[0].times else None
    return setup.ranks.first(found)


def _known(setup: Setup, prompts: PromptSet, checkpoint: ProfileCheckpoint) -> Measurement | None:
    """Returns what is cached, if rank 0 has the profile and every rank the runs of its batches."""
    ranks = setup.ranks
    profile = ranks.first(checkpoint.load_profile() if ranks.rank == 0 else None)
    runs = checkpoint.runs(ranks.own(len(setup.batches(prompts)))) if profile else None
    whole = all(ranks.exchange(runs is not None))
    return Measurement(setup, prompts, profile, runs) if profile and runs is not None and whole else None


def record(setup: Setup, prompts: PromptSet, checkpoint: ProfileCheckpoint | None = None) -> Measurement:
    """Runs all prompts in full: a profile without sensitivities, and the trajectories of this rank's batches."""
    runs, jobs = list[Trajectory](), setup.batches(prompts)

    def work(number: int) -> tuple[tuple[float, ...], list[dict[str, np.ndarray]], list[float], int]:
        found = checkpoint.load(number) if checkpoint else None
        if found is None:
            run = run_reference(setup, jobs[number])
            found = run, statistics_of(run, jobs[number])
            if checkpoint:
                checkpoint.save(number, *found)
        runs.append(found[0])
        return found[0].times, found[1], found[0].branches, found[0].left

    report = setup.stage("full runs", len(prompts))
    done = setup.ranks.each(len(jobs), work, lambda batches: report(batches * setup.batch_size))
    for batch, (grid, _, _, _) in zip(jobs, done, strict=True):
        if grid != done[0][0]:
            raise ValueError(
                f"prompt {batch.first} runs on another grid ({len(grid)} steps) than prompt {prompts.first} "
                f"({len(done[0][0])}): calibrate with one size and one number of steps"
            )
    rows = [row for _, known, _, _ in done for row in known]
    about: dict[str, Any] = {"branches": done[0][2]} if all(one[2] == done[0][2] for one in done) else {}
    about |= {"left": done[0][3]} if done[0][3] else {}
    mappings = [row for row in prompts if not isinstance(row, str)] or [{}]
    names = sorted({name for row in mappings for name in row})
    numbers = {name: value for name, value in mappings[0].items() if isinstance(value, (int, float))}
    same = {name: value for name, value in numbers.items() if all(row[name] == value for row in mappings)}
    about |= {"prompt_arguments": names, "call": same} if names else {}
    return Measurement(setup, prompts, build_profile(done[0][0], rows, about), runs)


# The sensitivity of each step: what a forecast at that step alone does to the final latents.


class PerturbationHook(Replay):
    """Replays the reference up to one step, linearly extrapolates there, and computes the rest.

    Replayed steps cost no denoiser call: until then nothing differs from the reference.
    """

    follows_loops = False

    def __init__(self, at: int, reference: Trajectory) -> None:
        super().__init__(reference)
        self.at, self.reference = at, reference
        self.error, self.final = 0.0, 0.0  # squared and relative, of the forecast and of the end result

    def should_compute(self, step: Step) -> bool:
        return step.index == 0 or step.index > self.at

    def model_output(self, step: SchedulerStep) -> Tensor:
        index, known = step.step.index, self.reference.u[self.reference.at(step.track)]
        if index > self.at:
            return step.u
        if index < self.at:
            return super().model_output(step)
        guess = 2 * known[index - 1] - known[index - 2] if index > 1 else known[index - 1]
        self.error += relative_error(guess, known[index])
        return guess.to(step.u)

    def on_step_end(self, step: SchedulerStep, latents: Tensor) -> None:
        if step.step.index == len(self.reference.times) - 1:
            self.final += relative_error(latents.cpu(), self.reference.y[self.reference.at(step.track)][-1])


def measure_sensitivity(
    setup: Setup,
    prompts: PromptSet,
    profile: Profile,
    run: Trajectory | None,
    checkpoint: ProfileCheckpoint | None = None,
) -> Profile:
    """Measures the sensitivity of each step on one batch: N - 1 runs of half the length on average.

    The reference trajectory of these prompts is needed on rank 0 alone. Values are kept as they are measured, and not
    measured again.

    Returns:
        The profile with sensitivities of shape (1, N). Step 0 is always computed and has the largest.
    """
    ranks, reference = setup.ranks, share_trajectory(run, setup.ranks)
    known: dict[int, float] = {}
    for found in ranks.exchange(checkpoint.load_sensitivity() if checkpoint else {}):
        known |= found
    missing = [at for at in range(1, profile.steps) if at not in known]

    def work(number: int) -> float:
        hook = PerturbationHook(missing[number], reference)
        setup.run(hook, prompts)
        known[missing[number]] = hook.final / max(hook.error, LEAST)
        if checkpoint:
            checkpoint.save_sensitivity(known)
        return known[missing[number]]

    done = profile.steps - 1 - len(missing)
    measured = ranks.each(len(missing), work, setup.stage("sensitivity of each step", profile.steps - 1, done))
    known |= dict(zip(missing, measured, strict=True))
    finite = [value for value in known.values() if math.isfinite(value)]
    largest = max(finite, default=1.0)
    # A forecast that makes the run overflow is as bad as any that was seen.
    values = [known[at] if math.isfinite(known[at]) else largest for at in range(1, profile.steps)]
    return replace(profile, sensitivities=np.array([[largest if not values else max(values), *values]]))


def share_trajectory(run: Trajectory | None, ranks: Ranks) -> Trajectory:
    """Returns what a perturbed run needs of the trajectory that rank 0 has, on all ranks; a tensor at a time."""
    if ranks.size == 1:
        assert run is not None
        return run
    times, tracks = ranks.first((run.times, len(run.u)) if run else ((), 0))

    def value(kind: str, track: int, at: int) -> Tensor:
        found: Tensor | None = ranks.first(getattr(run, kind)[track][at] if run else None)
        assert found is not None
        return found

    lead = ranks.first(run.lead if run else 0)
    u = [[value("u", track, at) for at in range(len(times) if track >= lead else 0)] for track in range(tracks)]
    return Trajectory(times, u, y=[[value("y", track, -1)] if track >= lead else [] for track in range(tracks)])
