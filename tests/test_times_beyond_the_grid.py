"""A schedule of 28 steps ends at t = 1/28; planned anew for 50 steps it is asked about t = 1/50."""

import numpy as np
import pytest
import toy

import adaptcache
from adaptcache.fitting.affine import build_sampler
from adaptcache.fitting.instant import instant
from adaptcache.fitting.kernel import resample_kernel
from adaptcache.forecasts.open_loop import OpenLoop
from adaptcache.schedule import Kernel
from adaptcache.schedule.instant import InstantRequest
from adaptcache.schedule.replan import replan
from adaptcache.step import Step

FITTED, WANTED = (1 - np.arange(n) / n for n in (28, 50))
OUTPUTS = {
    "a line": lambda t: np.stack([t, np.ones_like(t)]),
    "a parabola": lambda t: np.stack([t**2, 1 - t]),
    "a cubic": lambda t: np.stack([t**3 - t, 1 - t, t**2]),
}


def kernel(outputs, times):
    """Returns the inner products of what a denoiser would give at these times."""
    values = outputs(times)
    return values.T @ values


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_kernel_goes_on_beyond_the_grid_it_was_measured_on(name):
    moved = resample_kernel(kernel(OUTPUTS[name], FITTED), FITTED, WANTED)
    assert np.allclose(moved, kernel(OUTPUTS[name], WANTED), atol=1e-6)


def test_two_times_beyond_the_grid_are_not_the_same_time():
    beyond = np.array([1.0, 0.5, 1 / 40, 1 / 50])
    moved = resample_kernel(kernel(OUTPUTS["a line"], FITTED), FITTED, beyond)
    apart = moved[2, 2] - 2 * moved[2, 3] + moved[3, 3]
    assert apart == pytest.approx((1 / 40 - 1 / 50) ** 2, rel=1e-3)


@pytest.mark.parametrize("first", [0.9, 0.6])
def test_times_before_the_first_one_are_beyond_the_grid_too(first):
    inner = np.linspace(first, 0.1, 12)  # image-to-image was measured, text-to-image is run
    moved = resample_kernel(kernel(OUTPUTS["a parabola"], inner), inner, FITTED)
    assert np.allclose(moved, kernel(OUTPUTS["a parabola"], FITTED), atol=1e-4)


def test_sensitivities_beyond_the_grid_are_those_at_its_ends():
    fall = Kernel(times=(0.9, 0.5, 0.1), gram=np.eye(3).tolist(), sensitivity=(3.0, 2.0, 0.5))
    _, moved = fall.on_grid((1.0, 0.7, 0.05))
    assert moved == pytest.approx([3.0, 2.5, 0.5])
    same, unmoved = fall.on_grid((0.9, 0.5, 0.1 + 1e-6))
    assert np.array_equal(same, np.eye(3)) and unmoved.tolist() == [3.0, 2.0, 0.5]


def test_a_forecast_beyond_the_grid_is_exact_where_outputs_are_lines():
    gram = tuple(map(tuple, kernel(OUTPUTS["a line"], FITTED).tolist()))
    forecast = OpenLoop(times=tuple(FITTED.tolist()), gram=gram, history=2, ridge=1e-10)
    past, now = (47, 46), 49  # at t = 3/50 and 4/50, for t = 1/50
    weights = np.array(forecast.weights(Step(now, tuple(WANTED.tolist()), past)).past)
    values = OUTPUTS["a line"](WANTED)
    assert values[:, list(past)] @ weights == pytest.approx(values[:, now], abs=1e-4)


def test_a_schedule_planned_anew_for_more_steps_reaches_beyond_its_grid():
    fitted = adaptcache.calibrate(toy.Pipe(), toy.PROMPTS, steps=12, budget=0.5)
    times = tuple((1 - np.arange(30) / 30).tolist())
    rule = replan(fitted, times)
    assert rule.steps(times) and rule.steps(times)[0] == 0 and len(rule.steps(times)) == 15
    gram, _ = fitted.kernel.on_grid(times)
    assert gram[-1, -1] != pytest.approx(gram[-2, -2], rel=1e-12)


def test_on_another_grid_the_weights_are_those_of_theory_where_it_holds():
    fitted = adaptcache.calibrate(toy.Pipe(), toy.PROMPTS, steps=12, budget=0.5)
    for steps, holds in ((30, True), (10, False)):  # with fewer calls than theory needs they are the kernel's
        times = tuple((1 - np.arange(steps) / steps).tolist())
        request = InstantRequest(times, 1.0, build_sampler(np.append(times, 0.0)))
        alone, rule = replan(fitted, times), replan(fitted, times, request)
        assert rule.policy == alone.policy
        plan = rule.steps(times)
        theory = instant(request.sampler, len(plan), plan=plan).matching.rows
        rows = rule.forecast.table[0][0]
        known = alone.forecast.table[0][0]
        assert rows == (theory if holds else tuple((*row, 0.0, 0.0) if row else () for row in known))


def test_an_attached_schedule_reads_the_sampler_of_another_grid():
    pipe = toy.Pipe()
    fitted = adaptcache.calibrate(pipe, toy.PROMPTS, steps=12, budget=0.5)
    with adaptcache.attach(pipe, fitted) as handle, pytest.warns(UserWarning, match="planned anew"):
        pipe(prompt=toy.PROMPTS[0], num_inference_steps=30)
        ((times, rule),) = handle._runner.rules.items()
    assert rule.policy == replan(fitted, times).policy and rule.forecast.features == ("x", "x0")
