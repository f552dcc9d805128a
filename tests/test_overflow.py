"""A step at which a forecast makes the run overflow is the worst of all to skip, wherever it stands."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

import adaptcache
from adaptcache.cache import Cache
from adaptcache.fitting.plan import best_plan
from adaptcache.profile import Profile
from adaptcache.profiling.checkpoint import ProfileCheckpoint
from adaptcache.profiling.measure import measure_sensitivity, record
from adaptcache.runs import PromptSet
from tests.calls import Call
from tests.toy import PROMPTS, Pipe

STEPS = 8
Measured = Callable[[dict[int, float]], Profile]


@pytest.fixture
def measured(tmp_path) -> Measured:
    """Returns what gives a profile with the sensitivities given, from step 1 on: they were measured already."""
    setup, prompts = Call(STEPS).of(Pipe()), PromptSet.of(PROMPTS[:1])
    recorded = record(setup, prompts)
    checkpoint = ProfileCheckpoint(Cache(tmp_path), "key")

    def profile(values: dict[int, float]) -> Profile:
        checkpoint.save_sensitivity(values)
        return measure_sensitivity(setup, prompts, recorded.profile, recorded.runs[0], checkpoint)

    return profile


@pytest.mark.parametrize("overflowed", [(1,), (1, 2), (2,), (7,), (3, 5), (1, 4, 7)], ids=str)
@pytest.mark.parametrize("how", [math.inf, math.nan])
def test_steps_that_overflow_count_as_the_worst_that_was_seen(
    measured: Measured, overflowed: tuple[int, ...], how: float
) -> None:
    values = {step: 1.0 + step for step in range(1, STEPS)} | dict.fromkeys(overflowed, how)
    found = measured(values).sensitivities[0]
    worst = max(value for value in values.values() if math.isfinite(value))
    assert min(found[list(overflowed)]) >= worst and np.isfinite(found).all()
    assert [found[step] for step in values if step not in overflowed] == [
        value for step, value in values.items() if step not in overflowed
    ]


def test_where_all_overflow_all_are_alike(measured: Measured) -> None:
    found = measured(dict.fromkeys(range(1, STEPS), math.inf)).sensitivities[0]
    assert np.isfinite(found).all() and len(set(found)) == 1 and found[0] > 0


def test_the_plan_is_that_of_steps_that_are_all_as_bad(measured: Measured) -> None:
    values = {step: 1.0 for step in range(1, STEPS)} | {1: math.inf, 2: math.inf}
    bad, like = measured(values), measured({step: 1.0 for step in values})
    assert best_plan(bad.errors, bad.sensitivity, 3) == best_plan(like.errors, like.sensitivity, 3)


def test_a_run_that_truly_overflows_makes_its_step_the_worst(monkeypatch: pytest.MonkeyPatch) -> None:
    """From one step on a denoiser answers extrapolated latents with infinities."""
    from adaptcache.profiling.measure import PerturbationHook

    original = PerturbationHook.on_step_end

    def burst(self, step, latents) -> None:
        original(self, step, latents * (math.inf if self.at == 2 else 1))

    monkeypatch.setattr(PerturbationHook, "on_step_end", burst)
    seen: list[Profile] = []
    monkeypatch.setattr(
        "adaptcache.profiling.measure.measure_sensitivity",
        lambda *given: seen.append(measure_sensitivity(*given)) or seen[-1],
    )
    adaptcache.calibrate(Pipe(), PROMPTS, STEPS, budget=0.5)
    (profile,) = seen
    assert np.isfinite(profile.sensitivities).all()
    assert profile.sensitivities[0, 2] == profile.sensitivities[0].max()
    assert replace(profile).sensitivity[2] == profile.sensitivity.max()
