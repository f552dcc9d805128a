"""The sensitivity of each step: what a forecast at that step alone does to the final latents."""

import math
from dataclasses import replace

import numpy as np
from torch import Tensor

from ..distributed import Ranks
from ..hooks import SchedulerStep
from ..profile import Profile
from ..runs import PromptSet, Setup
from ..step import Step
from .checkpoint import ProfileCheckpoint
from .reference import Replay, Trajectory
from .statistics import relative_error

LEAST = 1e-12  # relative energy of a forecast error that is only rounding


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

    Arguments:
        setup: Who runs, and who shares the runs.
        prompts: A few prompts of the profile, in one batch.
        profile: The profile to complete.
        run: Their reference trajectory; only rank 0 needs it.
        checkpoint: Where values are kept as they are measured, and taken from when all is done again.

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
