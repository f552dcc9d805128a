"""What each forecast is exact on, and by how much it is off where it is not."""

import math

import numpy as np
import pytest
import torch
import toy
from diffusers.hooks.taylorseer_cache import TaylorSeerState

from adaptcache.fitting.differences import backward, lagrange, mean_weights
from adaptcache.forecasts import FORECASTS
from adaptcache.forecasts.adams_bashforth import AdamsBashforth
from adaptcache.forecasts.bands import Bands
from adaptcache.forecasts.base import Known
from adaptcache.forecasts.chebyshev import Chebyshev
from adaptcache.forecasts.dmd import DynamicModes
from adaptcache.forecasts.extrapolate import Extrapolate
from adaptcache.forecasts.foca import FoCa
from adaptcache.forecasts.frequency import Frequency
from adaptcache.forecasts.gamma import Gamma
from adaptcache.forecasts.hermite import Hermite
from adaptcache.forecasts.momentum import Momentum
from adaptcache.forecasts.newton import Newton
from adaptcache.forecasts.offset import Offset
from adaptcache.forecasts.open_loop import OpenLoop
from adaptcache.forecasts.scaled import Scaled
from adaptcache.forecasts.taylor import Taylor
from adaptcache.forecasts.velocity import Velocity
from adaptcache.step import Step

STEPS = 20
TIMES = tuple(1 - (i / STEPS) ** 1.5 for i in range(STEPS))  # uneven


def predicted(forecast, step, function):
    """Returns the forecast of a function of the step number, or of time."""
    return sum(w * function(i) for w, i in zip(forecast.weights(step).past, step.past, strict=False))


@pytest.mark.parametrize("order", range(5))
@pytest.mark.parametrize("past", [(9, 7, 6, 3, 1, 0), (5, 4, 3, 2, 1, 0)])
def test_newton_is_exact_on_polynomials_in_steps_and_extrapolate_in_time(order, past):
    step = Step(past[0] + 3, TIMES, past)
    for degree in range(order + 1):
        assert predicted(Newton(order=order), step, lambda i, d=degree: i**d) == pytest.approx(step.index**degree)
        exact = predicted(Extrapolate(order=order), step, lambda i, d=degree: TIMES[i] ** d)
        assert exact == pytest.approx(step.t**degree, abs=1e-9)


@pytest.mark.parametrize("gap, elapsed", [(1, 1), (2, 1), (3, 2), (5, 4)])
def test_taylor_of_order_two_falls_short_of_a_parabola_by_a_k_g(gap, elapsed):
    past = tuple(12 - gap * i for i in range(3))
    step, a = Step(12 + elapsed, TIMES, past), 3.0
    for order in (0, 1, 2):
        line = predicted(Taylor(order=max(order, 1)), step, lambda i: 1 + 2 * i)
        assert line == pytest.approx(1 + 2 * step.index)
    off = predicted(Taylor(order=2), step, lambda i: a * i * i) - a * step.index**2
    assert off == pytest.approx(-a * elapsed * gap)
    assert predicted(Newton(order=2), step, lambda i: a * i * i) == pytest.approx(a * step.index**2)


@pytest.mark.parametrize("order", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("computed", [[0, 1, 2, 4, 7, 10, 13], [0, 1, 2, 3], [0, 3, 4, 9], [0]])
def test_taylor_gives_the_numbers_of_diffusers(order, computed):
    values = torch.randn(STEPS, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(order))
    peer, past = TaylorSeerState(torch.float64, order), ()
    for index in range(computed[-1] + 4):
        peer.current_step = index
        if index in computed:
            peer.update((values[index],))
            past = (index, *past)
        else:
            weights = Taylor(order=order).weights(Step(index, TIMES, past)).past
            ours = sum(w * values[i] for w, i in zip(weights, past, strict=False))
            assert torch.allclose(ours, peer.predict()[0], rtol=1e-9)


def test_backward_differences_of_even_steps_are_the_textbooks():
    assert np.allclose(backward([4.0, 3.0, 2.0, 1.0], 3), [[1, 0, 0, 0], [1, -1, 0, 0], [1, -2, 1, 0], [1, -3, 3, -1]])
    assert len(backward([4.0, 3.0], 5)) == 2


def test_hermite_of_order_one_damps_the_slope_by_twice_the_square_of_its_scale():
    step = Step(10, TIMES, (8, 5, 2))
    for scale in (0.5, 0.7, 1.0):
        got = predicted(Hermite(order=1, scale=scale), step, lambda i: 1 + 4 * i)
        assert got == pytest.approx(33 + 2 * scale**2 * 8)
    assert sum(Hermite(order=2, scale=0.6).weights(step).past) == pytest.approx(1)  # exact on constants


def test_hermite_of_order_two_is_its_closed_form():
    scale, gap, elapsed = 0.6, 2, 3
    step = Step(9 + elapsed, TIMES, (9, 7, 5))
    values = {9: 5.0, 7: -1.0, 5: 2.0}
    first, second = 5.0 - -1.0, (5.0 - 2 * -1.0 + 2.0)
    z = scale * elapsed / gap
    want = 5.0 + first * scale * 2 * z + second / 2 * scale**2 * (4 * z * z - 2)
    assert predicted(Hermite(order=2, scale=scale), step, values.get) == pytest.approx(want)


def test_adams_bashforth_has_the_textbooks_weights_one_step_on():
    book = {
        1: [1],
        2: [3 / 2, -1 / 2],
        3: [23 / 12, -16 / 12, 5 / 12],
        4: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    }
    for order, weights in book.items():
        assert np.allclose(AdamsBashforth(order=order).weights(Step(8, TIMES, (7, 6, 5, 4))).past, weights)
    half_way = predicted(AdamsBashforth(order=2), Step(11, TIMES, (7, 4)), float)
    assert half_way == pytest.approx((7 + 11) / 2)


def test_mean_weights_integrate_the_polynomial():
    known, power = [3.0, 2.0, 0.5], 2
    mean = sum(w * k**power for w, k in zip(mean_weights(known, 3.0, 5.0), known, strict=True))
    assert mean == pytest.approx((5**3 - 3**3) / 3 / 2)
    assert sum(lagrange(known, 9.0)) == pytest.approx(1)


def foca(values, computed, until):
    """The recursion on values, as published code runs it."""
    now = before = anchor = older = None
    for index in range(until + 1):
        if index in computed:
            older, anchor, last = (anchor if anchor is not None else values[index]), values[index], index
            before, now = (now if now is not None else values[index]), values[index]
        else:
            elapsed = index - last
            reach = min(elapsed, 3)
            guess = anchor + reach / 2 * (anchor - older + now - before)
            before, now = now, anchor + reach / elapsed * (guess - anchor)
    return now


@pytest.mark.parametrize("computed, until", [([0, 1, 2, 3], 9), ([0, 1, 4], 7), ([0, 1, 3, 6], 8), ([0], 3)])
def test_foca_is_its_recursion(computed, until):
    values = np.random.default_rng(0).normal(size=STEPS)
    step = Step(until, TIMES, tuple(reversed(computed)))
    assert predicted(FoCa(history=4), step, lambda i: values[i]) == pytest.approx(foca(values, computed, until))


def test_foca_is_exact_on_lines_after_steps_computed_in_a_row():
    for index in (4, 5, 6):
        assert predicted(FoCa(), Step(index, TIMES, (3, 2, 1, 0)), lambda i: 2 + 3 * i) == pytest.approx(2 + 3 * index)


@pytest.mark.parametrize("order", [0, 2, 4])
def test_chebyshev_is_exact_without_ridge_and_shrinks_with_it(order):
    step = Step(13, TIMES, (12, 11, 8, 5, 2, 1, 0))
    for degree in range(order + 1):
        exact = predicted(Chebyshev(order=order, ridge=0), step, lambda i, d=degree: (i / 10) ** d)
        assert exact == pytest.approx(1.3**degree, rel=1e-6)
    assert predicted(Chebyshev(order=0, ridge=0.1), step, lambda i: 1.0) == pytest.approx(7 / 7.1)


def test_velocity_knows_the_mean_velocity_of_the_jump():
    # A velocity linear in time: the average from the last computed step to this one is exact.
    past, here = (6, 4, 3), Step(9, TIMES, (6, 4, 3))

    def velocity(t):
        return 2 + 5 * t

    def latents(t):
        return 2 * t + 5 * t * t / 2

    for span in (1, 2):
        weights = Velocity(span=span).weights(here)
        got = sum(w * velocity(TIMES[i]) for w, i in zip(weights.past, past, strict=False))
        got += sum(w * latents(TIMES[i]) for w, i in zip(weights.past_x, past, strict=False))
        assert got == pytest.approx((velocity(TIMES[6]) + velocity(here.t)) / 2)


def test_scaled_reuse_has_the_norm_the_ratios_foretell():
    ratios = tuple(1 + i / 100 for i in range(STEPS))
    assert Scaled(ratios=ratios).weights(Step(7, TIMES, (4, 0))).past == (pytest.approx(1.05 * 1.06 * 1.07),)
    twice = tuple(1 - i / 40 for i in range(2 * STEPS - 1))  # half as long steps grow by the root
    grown = Scaled(ratios=(1.1,) * STEPS).weights(Step(2 * STEPS - 2, twice, (0,))).past[0]
    assert grown == pytest.approx(1.1 ** (STEPS - 1))


def test_offset_is_exact_where_output_and_latents_change_alike():
    weights = Offset().weights(Step(5, TIMES, (3,)))
    move = torch.randn(2, 3)
    known = Known([torch.ones(2, 3)], 1 + move, torch.zeros(2, 3), [torch.ones(2, 3)])
    assert weights.past_x == (-1.0,)
    assert torch.allclose(Offset().combine(known, Step(5, TIMES, (3,))), 1 + move)


def test_open_loop_is_exact_on_what_is_linear_in_the_outputs_kept():
    profile = toy.profile()
    basis = np.random.default_rng(0).normal(size=(2, 50))
    outputs = np.array([[1, 0], [0, 1], [1, 1], [3, -1], [2, 5], [1, 4]]) @ basis
    forecast = OpenLoop(
        times=tuple(1 - i / 6 for i in range(6)),
        gram=tuple(map(tuple, outputs @ outputs.T)),
        ridge=1e-12,
        history=2,
    )
    for index in (2, 3, 5):
        weights = forecast.weights(Step(index, forecast.times, (1, 0))).past
        assert np.allclose(weights[0] * outputs[1] + weights[1] * outputs[0], outputs[index], atol=1e-5)
    assert len(OpenLoop.fit(profile, [0]).gram) == profile.steps


def test_gamma_is_exact_where_the_probe_moves_in_proportion():
    direction, probe = torch.randn(2, 4, 3), torch.randn(2, 4, 3)

    def output(k):
        return 1 + k * direction

    known = Known([output(3), output(1)], probe, probe, signal=2 * probe, past_signal=[1.5 * probe, 0.5 * probe])
    made = Gamma().combine(known, Step(4, TIMES, (3, 1)))
    assert torch.allclose(made, output(4), atol=1e-6)  # gamma = 1.5 / 1
    far = Known(known.past, probe, probe, signal=9 * probe, past_signal=known.past_signal)
    assert torch.allclose(Gamma().combine(far, Step(9, TIMES, (3, 1))), output(4), atol=1e-6)  # clipped at 1.5


@pytest.mark.parametrize("modes", [1, 2, 3])
@pytest.mark.parametrize("gap", [1, 2])
def test_dynamic_modes_continue_sums_of_exponentials(modes, gap):
    rng = np.random.default_rng(modes)
    growth, shapes = np.array([0.9, 0.6, 1.1][:modes]), rng.normal(size=(modes, 40))

    def output(k):
        return torch.tensor(growth**k @ shapes).reshape(1, 10, 4)

    past = tuple(10 - gap * i for i in range(6))[: 6 if gap == 1 else 5]
    past = tuple(p for p in past if p >= 0)
    for ahead in (1, 2, 3):
        step = Step(10 + ahead, TIMES, past)
        made = DynamicModes().combine(Known([output(i) for i in past], output(0), output(0)), step)
        assert torch.allclose(made, output(10 + ahead), rtol=2e-2, atol=2e-2)


def test_dynamic_modes_extrapolate_linearly_until_there_are_four_even_outputs():
    past = [torch.randn(1, 3, 4) for _ in range(4)]
    step = Step(8, TIMES, (7, 5, 4, 0))
    made = DynamicModes().combine(Known(past, past[0], past[0]), step)
    assert torch.allclose(made, past[0] + (past[0] - past[1]) / 2)


def test_frequency_split_reuses_the_low_band_and_extrapolates_the_high_one():
    n, step = 16, Step(5, TIMES, (4, 3, 2))
    position = torch.arange(n) * 2 * math.pi / n
    low, high = torch.cos(position)[None, :, None], torch.cos(7 * position)[None, :, None]
    past = [(1 + k) * low + (1 + k) ** 2 * high for k in (4, 3, 2)]
    made = Frequency(cut=0.25, order=1).combine(Known(past, low, low), step)
    weights = Hermite(order=1, scale=0.5).weights(step).past
    want = 5 * low + (weights[0] * 25 + weights[1] * 16) * high
    assert torch.allclose(made, want, atol=1e-4)
    image = torch.randn(2, 3, 8, 8)
    assert torch.allclose(Frequency(cut=1).combine(Known([image, image + 1], image, image), step), image, atol=1e-5)


def test_linear_forecasts_of_outputs_sum_to_one_so_that_constants_stay():
    # The others are pulled to zero, scaled, fitted, or mix outputs with latents.
    for name in FORECASTS.keys() - {
        "affine",
        "bands",
        "channels",
        "increment",
        "chebyshev",
        "scaled",
        "open-loop",
        "matched",
        "velocity",
        "offset",
    }:
        assert sum(FORECASTS[name]().weights(Step(9, TIMES, (8, 6, 5, 3, 1, 0))).past) == pytest.approx(1)


def test_momentum_is_exact_on_lines_at_every_second_step_and_feeds_back_what_it_made():
    line = [torch.tensor([[2.0 + 3 * i]]) for i in range(9)]
    step = Step(7, TIMES, (6, 4, 2, 0))
    past = [line[i] for i in step.past]
    assert float(Momentum(weight=0.5).combine(Known(past[:2], line[0], line[0]), step)) == float(line[7])
    outputs = {0: line[0], 1: line[1], 4: line[4] ** 2, 6: line[6]}
    calls = []
    for index in range(8):  # as a cache of the last two calls has it
        before = calls[-2] if len(calls) > 1 else calls[-1] if calls else None
        made = outputs[index] if index in outputs else calls[-1] + 0.3 * (calls[-1] - before)
        calls.append(made)
    known = Known([outputs[i] for i in (6, 4, 1, 0)], line[0], line[0])
    made = Momentum(weight=0.3, fed_back=True).combine(known, Step(7, TIMES, (6, 4, 1, 0)))
    assert float(made) == pytest.approx(float(calls[7]), rel=1e-6)


def test_bands_grow_apart_within_their_times_only():
    flat, checks = torch.full((1, 2, 8, 8), 3.0), torch.ones(1, 2, 8, 8)
    checks[..., ::2, 1::2] = checks[..., 1::2, ::2] = -1  # the highest frequency there is
    step = Step(5, (1.0, 0.8, 0.6, 0.4, 0.2, 0.1), (2, 1, 0))
    bands = Bands(low=1.5, high=0.5, low_window=(0.3, 0.9), high_window=(-0.1, 0.3))
    made = bands.combine(Known([flat + checks], flat, flat), step)
    assert torch.allclose(made, 1.5 * flat + 0.25 * checks, atol=1e-5)  # once at 0.4; twice at 0.2 and 0.1
    tokens = torch.randn(1, 5, 3)
    assert torch.allclose(bands.combine(Known([tokens], tokens, tokens), step), 1.5 * tokens)
    none = Bands(low=0, high=0, low_window=(-1, 2), high_window=(-1, 2))
    assert not none.combine(Known([flat + checks], flat, flat), step).any()
