"""What is special about each policy: golden masks, closed forms, and what the papers' codes do."""

import json
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
import torch
import toy
from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS, nearest_interp
from diffusers.hooks.sea_cache import _apply_sea_filter

from adaptcache.fitting.polynomial import cross_validate, fit_rising
from adaptcache.policies.codebook import Codebook
from adaptcache.policies.drift import Drift
from adaptcache.policies.growing import Growing
from adaptcache.policies.learned import Learned, build_examples
from adaptcache.policies.local_error import LocalError
from adaptcache.policies.magnitude import Magnitude
from adaptcache.policies.mask import Mask, nearest_entries
from adaptcache.policies.polynomial import Polynomial
from adaptcache.policies.probe import Probe
from adaptcache.policies.replay import build_vectors, replay
from adaptcache.policies.sensitivity import Sensitivity
from adaptcache.policies.spectral import denoised
from adaptcache.policies.third_difference import ThirdDifference
from adaptcache.policies.transform_rate import TransformRate
from adaptcache.policies.uniform import Uniform
from adaptcache.policies.verify import Verify
from adaptcache.schedule.methods import build_rules
from adaptcache.step import Step, relative_change

PUBLISHED = json.loads((files("adaptcache.schedule") / "published.json").read_text())
RATIOS = {name: tuple(entry["ratios"]) for name, entry in PUBLISHED["magcache"]["sets"].items()}
PROFILE = toy.profile(16)


def grid(steps):
    return tuple(1 - i / steps for i in range(steps))


def decide(policy, xs, outputs=None, steps=None):
    """Returns the mask of a policy on a list of signals."""
    steps = steps or len(xs)
    times, past, mask = grid(steps), (), ""
    state = policy.init(times)
    for index in range(steps):
        step = Step(index, times, past, x=xs[index] if xs is not None else None)
        if index == 0 or policy.compute(state, step):
            policy.observe(state, step, (outputs if outputs is not None else xs)[index])
            past, mask = (index, *past), mask + "1"
        else:
            mask += "0"
    return mask


GOLDEN = [
    ("flux", 0.24, 5, 0.1, {"always": (11,)}, "1110010001010000010000010010"),
    ("flux", 0.24, 5, 0.1, {}, "1110010001000001000001000010"),
    ("flux", 0.06, 3, 0.2, {}, "1111110101000100010001001011"),
    ("flux-kontext", 0.05, 4, 0.2, {"always": (11,)}, "1111110100110000100001001011"),
    ("hunyuan-video-720p", 0.24, 6, 0.2, {}, "11111111110000100010000100000100001000000100001011"),
    ("hunyuan-video-720p", 0.12, 4, 0.2, {}, "11111111110010010010001001000100010000100001001011"),
    ("hunyuan-video-544p", 0.24, 6, 0.2, {}, "11111111110000100010000100000100001000000100001010"),
    ("wan2.1-t2v-1.3b", 0.12, 2, 0.2, {}, "11111111110010010010010010010010010010010010101011"),
    ("wan2.1-t2v-1.3b", 0.12, 4, 0.2, {}, "11111111110000100001000010000100001000100100101011"),
    ("wan2.1-t2v-1.3b", 0.24, 6, 0.2, {}, "11111111110000001000000100000010000010000100010101"),
    ("wan2.1-t2v-14b", 0.12, 4, 0.2, {}, "11111111110000100001000010000100001000100100101011"),
    ("wan2.1-t2v-14b", 0.24, 6, 0.2, {}, "11111111110000001000000100000010000010000100100101"),
    ("wan2.1-i2v-480p", 0.12, 4, 0.2, {}, "1111111100001000010001000100100100101010"),
    ("wan2.1-i2v-720p", 0.12, 4, 0.2, {}, "1111111100001000010000100010001001010101"),
]


@pytest.mark.parametrize("model, threshold, most, retention, more, mask", GOLDEN)
def test_magnitude_reproduces_the_published_masks(model, threshold, most, retention, more, mask):
    entry = PUBLISHED["magcache"]["sets"][model]
    how = {key: entry[key] for key in ("rounded", "strict") if key in entry}
    policy = Magnitude(ratios=RATIOS[model], threshold=threshold, max_skip=most, retention=retention, **how, **more)
    assert decide(policy, None, [None] * len(mask), len(mask)) == mask


def test_the_ratios_and_their_stretching_are_those_of_diffusers():
    assert np.allclose(RATIOS["flux"], FLUX_MAG_RATIOS)
    for steps in (1, 2, 7, 20, 28, 50, 61):
        theirs = nearest_interp(torch.arange(28), steps).tolist()
        assert nearest_entries(28, steps) == theirs


def test_uniform_computes_what_the_papers_and_diffusers_do():
    xs = [None] * 14
    assert decide(Uniform(interval=3), None, xs, 14) == "10010010010010"
    assert decide(Uniform(interval=3, warm_up=3, cool_down=2), None, xs, 14) == "11100100100111"
    assert decide(Uniform(interval=3, warm_up=3, first_gap=2), None, xs, 14) == "11101001001001"  # diffusers


def test_growing_intervals_are_triangular():
    mask = decide(Growing(growth=2, warm_up=2), None, [None] * 16, 16)
    assert [i for i, flag in enumerate(mask) if flag == "1"] == [0, 1, 2, 4, 8, 14]


def test_bins_are_run_lengths():
    fast = PUBLISHED["cache-dit"]["sets"]["fast"]
    mask = Mask.of_bins(fast["compute"], fast["cache"], 28)
    assert decide(mask, None, [None] * 28, 28) == "1111110100010000100000100001"
    with pytest.raises(ValueError, match="28 are needed"):
        Mask.of_bins([1], [2], 28)


def test_bins_are_those_of_cache_dit():
    cache_dit = pytest.importorskip("cache_dit")
    for bins in PUBLISHED["cache-dit"]["sets"].values():
        theirs = cache_dit.steps_mask(compute_bins=bins["compute"], cache_bins=bins["cache"], total_steps=28)
        assert list(map(int, Mask.of_bins(bins["compute"], bins["cache"], 28).compute_steps)) == list(theirs)


def walk(values):
    """Returns signals with given relative L1 changes from step to step."""
    x = [torch.ones(1, 2, 3)]
    for value in values:
        x.append(x[-1] * (1 + value))
    return x


def test_polynomial_is_teacaches_rule():
    changes = np.random.default_rng(0).uniform(0.02, 0.4, 27)
    coefficients = PUBLISHED["teacache"]["sets"]["flux"]["coefficients"]
    summed, mask = 0.0, "1"
    for index, change in enumerate(changes, 1):
        summed += np.polyval(coefficients, change)
        compute = bool(summed >= 0.6 or index == 27)
        mask, summed = mask + "01"[compute], 0.0 if compute else summed
    assert decide(Polynomial(coefficients=tuple(coefficients), threshold=0.6), walk(changes)) == mask


def test_a_clamp_keeps_a_polynomial_on_its_range():
    policy = Polynomial(coefficients=(1.0, 0.0), threshold=0.5, clamp=(0.1, 0.2), cool_down=0)
    assert decide(policy, walk([9.0] * 6)) == "1001001"  # 0.2 a step
    assert decide(policy, walk([0.0] * 6)) == "1000010"  # 0.1 a step


def test_drift_adds_up_and_probe_does_not():
    back_and_forth = [torch.ones(1, 2, 3) * (1 + 0.1 * (i % 2)) for i in range(8)]
    assert decide(Drift(threshold=0.25), back_and_forth) == "10010010"
    assert decide(Probe(threshold=0.15), back_and_forth) == "10000000"
    assert decide(Probe(threshold=0.15), walk([0.1] * 6)) == "1010101"
    assert decide(Probe(threshold=0.15, max_skip=0), walk([0.1] * 6)) == "1111111"


def test_transform_rate_foretells_a_linear_denoiser():
    # u = 3 x: the rate is exactly 3, so the foretold change is that of x, and 0.1 a step adds up.
    xs = [torch.full((1, 2, 3), 1 + 0.1 * i) for i in range(10)]
    assert decide(TransformRate(threshold=0.25), xs, [3 * x for x in xs]) == "1100100010"


def test_third_difference_skips_while_the_moves_shrink_evenly():
    even = torch.cumsum(torch.linspace(1, 0.5, 12), 0)
    xs = [torch.full((1, 2, 2), float(v)) for v in even]
    assert decide(ThirdDifference(max_skip=4), xs) == "111100001000"[:3] + "000010000"[:9]
    jump = torch.cumsum(torch.tensor([1.0] * 6 + [3.0] * 6), 0)
    assert decide(ThirdDifference(max_skip=99), [torch.full((1, 2, 2), float(v)) for v in jump])[6:9] == "110"


def test_spectral_filter_is_diffusers():
    x = torch.randn(3, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    for t in (0.9, 0.5, 0.1):
        theirs = _apply_sea_filter(x.movedim(0, -1), sigma=t, power_exp=2.0).movedim(-1, 0)
        assert torch.allclose(denoised(x[None], t, 2.0)[0], theirs, atol=1e-5)


def test_local_error_skips_as_far_as_the_errors_allow():
    errors = ((0.1, 0.2, 0.9, 0.3),) * 9
    assert decide(LocalError(errors=errors, threshold=0.25), None, [None] * 9, 9) == "100100100"
    assert decide(LocalError(errors=errors, threshold=0.5, first=False), None, [None] * 9, 9) == "100001001"


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
def test_smoothcache_is_its_loop(threshold):
    steps, longest = 20, 3
    errors = np.random.default_rng(0).random((steps, longest))
    mask, index = [0] * steps, 0
    while index < steps:  # the longest skip whose error is small enough, whatever the shorter ones are
        mask[index], skips = 1, range(longest, 0, -1)
        index += 1 + next((k for k in skips if index + k < steps and errors[index, k - 1] < threshold), 0)
    mask[-1] = 1
    (rule, *_) = build_rules("smoothcache", errors=tuple(map(tuple, errors.tolist())), threshold=threshold)
    assert decide(rule.policy, None, [None] * steps, steps) == "".join(map(str, mask))


@pytest.mark.parametrize("steps", [8, 30, 50])
def test_dicache_decides_as_its_loop(steps):
    rng = torch.Generator().manual_seed(0)
    probes = list(torch.randn(steps, 1, 4, 3, generator=rng).mul(0.1).cumsum(0) + 3)
    mask, total = "", 0.0
    for index, probe in enumerate(probes):
        always = index <= int(0.2 * steps) or index == steps - 1
        total += 0.0 if always else float(relative_change(probe, probes[index - 1]))
        mask += "1" if always or total >= 0.1 else "0"
        total = 0.0 if mask[-1] == "1" else total
    (rule,) = build_rules("dicache", threshold=0.1)
    assert decide(rule.policy, probes) == mask and "10" in mask


def test_teacache_for_wan_computes_the_first_five_steps_where_the_authors_do_and_else_the_first_and_the_last():
    for name in PUBLISHED["teacache"]["sets"]:
        (rule,) = build_rules("teacache", model=name, threshold=1.0, coefficients=(0.0,))  # which never is due
        mask = decide(rule.policy, [torch.ones(1, 2)] * 12)
        assert mask == ("111110000000" if name.endswith("-ret") else "100000000001")


def test_easycache_decides_as_its_loop():
    rng, steps = torch.Generator().manual_seed(0), 20
    inputs, outputs = torch.randn(2, steps, 1, 4, generator=rng).mul(0.1).cumsum(1) + 2
    mask, total, rate, kept = "", 0.0, None, []
    for index in range(steps):
        if index < 5 or index >= steps - 1:
            mask, total = mask + "1", 0.0
        else:
            moved = (inputs[index] - inputs[index - 1]).abs().mean()
            total += float(rate * moved / outputs[kept[-1]].abs().mean())
            mask += "1" if total >= 0.15 else "0"
        if mask[-1] == "1":
            total = 0.0
            if kept:
                into, out = (values[index] - values[kept[-1]] for values in (inputs, outputs))
                rate = out.abs().mean() / into.abs().mean()
            kept.append(index)
    (rule,) = build_rules("easycache", threshold=0.15)
    assert decide(rule.policy, list(inputs), list(outputs)) == mask and "00" in mask


def test_codebook_looks_up_the_next_step_by_the_rate_per_step():
    policy = Codebook(table=((0.05, 3), (0.15, 2)))
    outputs = [torch.ones(1, 2, 2) * 1.1**i for i in range(10)]
    # Rates 0.1, then 0.21 / 2 = 0.105: two steps on each time.
    assert decide(policy, None, outputs, 10) == "1101010101"


def test_verify_computes_after_a_bad_forecast_and_not_before():
    policy, times = Verify(threshold=0.3, warm_up=2, max_skip=9), grid(12)
    state = policy.init(times)
    ones = torch.ones(1, 2, 2)
    policy.verify(state, Step(4, times, (1, 0)), ones, 1.05 * ones)
    assert not policy.compute(state, Step(5, times, (1, 0)))
    policy.verify(state, Step(5, times, (1, 0)), ones, 1.5 * ones)
    assert policy.compute(state, Step(6, times, (1, 0)))
    assert not policy.compute(state, Step(7, times, (6, 1, 0)))


def test_sensitivity_recovers_the_gains_of_a_linear_denoiser():
    # u depends on x alone, with gain 1 in relative terms: u = 2 x.
    n, rng = 10, np.random.default_rng(0)
    x = np.cumsum(rng.normal(size=(n, 30)) * 0.1, axis=0) + rng.normal(size=30)
    rows = np.concatenate([2 * x, x])
    profile = toy.profile(n)
    policy = Sensitivity.fit(replace(profile, gram=(rows @ rows.T)[None]), budget=0.5)
    assert np.allclose(policy.to_input[2:], 1, atol=1e-6) and np.allclose(policy.to_time[2:], 0, atol=1e-6)


@pytest.mark.parametrize("model", ["tree", "linear"])
def test_a_learned_policy_predicts_without_scikit_learn_what_scikit_learn_does(model):
    from sklearn.linear_model import LinearRegression
    from sklearn.tree import DecisionTreeRegressor

    policy = Learned.fit(PROFILE, budget=0.5, model=model)
    peer = (
        LinearRegression()
        if model == "linear"
        else DecisionTreeRegressor(max_leaf_nodes=32, min_samples_leaf=4, random_state=0)
    )
    x, y = build_examples(PROFILE)
    assert np.allclose([policy.predict(tuple(row)) for row in x], peer.fit(x, y).predict(x), atol=1e-5)
    assert np.corrcoef(peer.predict(x), y)[0, 1] > 0.9


def test_the_rising_fit_rises_and_is_not_negative():
    rng = np.random.default_rng(0)
    for k in range(5):
        x = rng.uniform(0.05, 0.5, 60)
        y = np.abs(rng.normal(size=60)) if k == 4 else x ** (k + 1) + rng.normal(size=60) * 0.01
        rising = fit_rising(x, y)
        values = rising(np.linspace(-1, 2, 300))
        assert (np.diff(values) >= -1e-9).all() and values.min() >= -1e-9


def test_the_rising_fit_is_exact_where_truth_rises():
    x = np.linspace(0.1, 0.6, 40)
    assert np.allclose(fit_rising(x, 0.2 + 3 * x**2)(x), 0.2 + 3 * x**2, atol=1e-9)


def test_held_out_scores_tell_a_law_from_noise():
    rng = np.random.default_rng(0)
    x = rng.uniform(0.1, 0.5, (6, 20))
    r2, rank = cross_validate(x, x**2)
    assert r2 > 0.99 and rank > 0.99
    assert cross_validate(x, rng.uniform(size=(6, 20)))[0] < 0.2


def test_stand_ins_have_the_geometry_of_the_profile():
    outputs, latents = build_vectors(PROFILE, 1)
    rows = torch.cat([outputs, latents]).double().numpy()
    assert np.allclose(rows @ rows.T, PROFILE.gram[1], atol=1e-4)
    change = (latents[1:] - latents[:-1]).abs().mean(1) / latents[:-1].abs().mean(1)
    assert np.allclose(change, PROFILE.change_in[1, 1:], rtol=0.1)


def test_replay_computes_what_the_run_computes():
    import adaptcache
    from adaptcache.schedule.rule import Rule
    from adaptcache.schedule.schedule import Schedule

    policy = Drift.fit(PROFILE, budget=0.4)
    pipe = toy.Pipe()
    rule = Rule(policy=policy, forecast=adaptcache.forecasts.FORECASTS["newton"]())
    with adaptcache.attach(pipe, Schedule(name="drift", rules=(rule,))) as handle:
        toy.run(pipe, 16)
        steps = handle.report().computed
    assert abs(len(steps) - len(replay(policy, PROFILE))) <= 1
