"""Published methods by name, numbers of other codes, and what lint finds in them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy

import adaptcache
from adaptcache.engines.formats.read import read_schedule
from adaptcache.engines.lint import find_cliffs, find_least, lint
from adaptcache.errors import ScheduleError
from adaptcache.forecasts.extrapolate import Extrapolate
from adaptcache.policies.magnitude import Magnitude
from adaptcache.policies.mask import Mask
from adaptcache.policies.polynomial import Polynomial
from adaptcache.policies.replay import replay
from adaptcache.policies.uniform import Uniform
from adaptcache.schedule.methods import METHODS, build_rules, find_method, fit_rules, published_sets
from adaptcache.schedule.rule import Rule
from adaptcache.schedule.schedule import Schedule

PROFILE = toy.profile(16)


def codes(schedule, profile=None, level=None):
    return {fault.code for fault in lint(schedule, profile) if level in (None, fault.level)}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_rule_or_says_what_it_needs(name, tmp_path):
    method = METHODS[name]
    if method.needs == "profile":
        with pytest.raises(LookupError, match="calibrate"):
            Schedule.of(name)
        return
    models = list(published_sets(method.published)) if method.published else [None]
    for model in models:
        needed = {"threshold": 0.1} if method.published == "teacache" else {}
        schedule = Schedule.of(name, **({"model": model} if model else {}), **needed)
        loaded = Schedule.load(schedule.save(tmp_path / "s.json"))  # eight digits are kept
        assert Schedule.load(loaded.save(tmp_path / "s.json")) == loaded
        assert schedule.rules[0].site == method.site and len(schedule.rules) == len(method.parts)
    if method.needs == "model":
        with pytest.raises(LookupError, match=models[0]):
            Schedule.of(name)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_fitted_to_a_profile_and_runs(name):
    rules = fit_rules(name, PROFILE, budget=0.5)
    # The toy has no layers: what is for these is tried where it has something to skip.
    rule = Rule(policy=rules[0].policy, forecast=rules[0].forecast)
    pipe = toy.Pipe()
    grid = {"scheduler": "FlowMatchEulerDiscreteScheduler", "times": tuple(map(float, PROFILE.times))}
    schedule = Schedule(name=name, grid=grid, rules=(rule,))
    with adaptcache.attach(pipe, schedule) as handle:
        out = toy.run(pipe, 16)
        assert out.isfinite().all() and 2 <= len(handle.report().computed) <= 13
    assert len(rules) == len(METHODS[name].parts) and rule.policy.signal in ("none", "input")


def uniform(interval):
    """Returns a schedule of whole steps."""
    return Schedule(name="uniform", rules=(Rule(policy=Uniform(interval=interval), forecast=Extrapolate()),))


def test_an_unfitted_schedule_runs_on_any_grid_without_a_warning(recwarn):
    pipe = toy.Pipe()
    with adaptcache.attach(pipe, uniform(4), strict=True) as handle:
        for steps, expected in [(8, [0, 4]), (10, [0, 4, 8])]:
            toy.run(pipe, steps)
            assert handle.report().computed == expected and handle.report().evidence == "none"
    assert not recwarn.list


def test_unknown_names_are_met_with_near_ones():
    for wrong, right in [("tecache", "teacache"), ("MagCache", "magcache"), ("fb-cache", "fbcache")]:
        with pytest.raises(LookupError, match=right):
            find_method(wrong)
    with pytest.raises(LookupError, match="threshold"):
        build_rules("fbcache", treshold=0.1)
    with pytest.raises(LookupError, match="flux"):
        build_rules("teacache", model="fluxx")
    with pytest.raises(LookupError, match="takes no model"):
        build_rules("fora", model="flux")


def written(tmp_path, data, name="theirs.json"):
    path = tmp_path / name
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_numbers_of_other_codes_are_read_schedule(tmp_path):
    tea = read_schedule(written(tmp_path, {"rel_l1_thresh": 0.2, "coefficients": [1, 2, 3, 4, 5]})).rules[0]
    assert tea.policy.coefficients == (1, 2, 3, 4, 5) and tea.policy.threshold == 0.2 and tea.site == "blocks"
    mag = read_schedule(written(tmp_path, {"mag_ratios": [1.0, 0.9], "threshold": 0.1, "max_skip_steps": 4})).rules[0]
    assert mag.policy == Magnitude(ratios=(1.0, 0.9), threshold=0.1, max_skip=4)
    light = {"infer_steps": 2, "magcache_ratios": [[1, 2], [1, 2]], "magcache_K": 5, "magcache_thresh": 0.5}
    assert read_schedule(written(tmp_path, light)).rules[0].policy == Magnitude(
        ratios=(1, 2), threshold=0.5, max_skip=5, strict=True, rounded=False
    )
    scm = {"scm_compute_bins": [2, 1], "scm_cache_bins": [1, 2], "num_inference_steps": 6}
    assert read_schedule(written(tmp_path, scm)).rules[0].policy == Mask(compute_steps=(1, 1, 0, 1, 0, 0))
    yaml_like = {"cache_config": {"steps_computation_mask": [1, 0, 1]}}
    assert read_schedule(written(tmp_path, yaml_like)).rules[0].policy == Mask(compute_steps=(1, 0, 1))
    bud = {"cache_step": [1, 3], "num_inference_steps": 4}
    assert read_schedule(written(tmp_path, bud)).rules[0].policy == Mask(compute_steps=(1, 0, 1, 0))
    assert read_schedule(written(tmp_path, "[True, False, True]\n")).rules[0].policy == Mask(compute_steps=(1, 0, 1))
    entry = '    "wan2.1_t2v_1.3B": np.array([1.0]*2+[1.5, 0.9, 0.8, 0.7]),'  # both branches take turns
    assert read_schedule(written(tmp_path, entry)).rules[0].policy.ratios == (1.0, 1.5, 0.8)


@pytest.mark.parametrize("theirs", ["{}", "[0.5, 0.2]", "nothing", '{"coefficients": [1, 2]}', '{"mag_ratios": "x"}'])
def test_files_that_say_nothing_are_refused(theirs, tmp_path):
    with pytest.raises(ScheduleError):
        read_schedule(written(tmp_path, theirs))


def test_ours_and_theirs_are_told_apart(tmp_path):
    ours = Schedule.of("fora").save(tmp_path / "ours.json")
    assert read_schedule(ours) == Schedule.of("fora")
    assert read_schedule(written(tmp_path, [1, 0, 0])).rules[0].policy == Mask(compute_steps=(1, 0, 0))
    with pytest.raises(ScheduleError):
        read_schedule(tmp_path / "missing.json")


def tea(coefficients, threshold, **more):
    policy = Polynomial(coefficients=tuple(coefficients), threshold=threshold, on="modulated", **more)
    return Schedule(
        name="tea", rules=(build_rules("teacache", model="flux")[0].model_copy(update={"policy": policy}),)
    )


FLUX = published_sets("teacache")["flux"]["coefficients"]


def test_lint_finds_a_threshold_below_the_least_the_polynomial_can_be():
    least, where = find_least(Polynomial(coefficients=tuple(FLUX), threshold=1))
    assert least == pytest.approx(0.180, abs=1e-3) and where == pytest.approx(0.053, abs=1e-3)
    assert "inert" in codes(tea(FLUX, 0.18), level="error")
    assert "inert" not in codes(tea(FLUX, 0.25))


@pytest.mark.parametrize("least, default", [(0.2985, 0.2), (0.618, 0.4), (0.582, 0.4)])
def test_lint_finds_the_inert_defaults_that_engines_shipped(least, default):
    # StableAudio in vLLM-Omni, HiDream dev and fast in ComfyUI: by their published least values.
    assert "inert" in codes(tea([10.0, -1.0, 0.025 + least], default), level="error")


def test_lint_finds_a_threshold_on_the_edge():
    # MiniMax-H3 in vLLM-Omni: least 0.154, default 0.17: nothing skipped at 0.15, 3 % at 0.17, 17 % at 0.18.
    assert "cliff" in codes(tea([10.0, -1.0, 0.025 + 0.154], 0.17))
    assert "cliff" not in codes(tea([10.0, -1.0, 0.025 + 0.154], 0.3))


def test_lint_finds_what_is_negative_falls_and_is_extrapolated():
    wan = published_sets("teacache")["wan2.1-t2v-1.3b"]["coefficients"]
    assert {"negative", "not-monotone", "extrapolates"} <= codes(tea(wan, 0.08))
    good = Polynomial.fit(PROFILE, budget=0.5)
    assert not codes(Schedule(name="good", rules=fit_rules("teacache", PROFILE))) - {"weak"}
    assert good.r2 is not None and good.rank is not None and good.clamp is not None


def test_most_published_polynomials_are_not_monotone():
    bad = [name for name, entry in published_sets("teacache").items()
           if {"negative", "not-monotone"} & codes(tea(entry["coefficients"], 0.5))]  # fmt: skip
    assert (len(bad), len(published_sets("teacache"))) == (20, 23)


def test_lint_scores_foreign_numbers_on_a_profile():
    x = np.linspace(0.1, 0.3, 15)
    made = replace(PROFILE, change_in=np.tile(np.append(0, x), (4, 1)), change_out=np.tile(np.append(0, x**2), (4, 1)))
    assert "weak" not in codes(tea([1.0, 0.0, 0.0], 0.1, clamp=(0.1, 0.3)), made)
    assert "weak" in codes(tea([-1.0, 0.5], 0.1, clamp=(0.1, 0.3)), made)
    assert "extrapolates" in codes(tea([1.0, 0.0, 0.0], 0.1, clamp=(0.1, 0.2)), made)


def test_lint_finds_ratios_that_do_not_matter_and_thresholds_that_skip_nothing():
    ratios = tuple(published_sets("magcache")["wan2.1-t2v-1.3b"]["ratios"])

    def with_(**params):
        return Schedule(name="mag", rules=(*build_rules("magcache", model="wan2.1-t2v-1.3b", **params),))

    assert len(ratios) == 50
    assert "ratios" in codes(with_(threshold=0.9, max_skip=1))
    assert "ratios" not in codes(with_(threshold=0.12, max_skip=4))
    assert "inert" in codes(with_(max_skip=0), level="error")


def test_cliffs_are_where_the_replayed_plan_changes():
    policy = fit_rules("dicache", PROFILE, budget=0.5)[0].policy
    for threshold, before, after in find_cliffs(policy, PROFILE, jump=1):
        at = policy.model_copy(update={"threshold": threshold})
        assert len(replay(at, PROFILE)) == after != before
    assert find_cliffs(Mask(compute_steps=(1, 0)), PROFILE) == []
    assert "inert" in codes(uniform(1), PROFILE)


def test_the_docs_list_every_method():
    page = (Path(__file__).parents[1] / "docs" / "methods.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert rows.keys() == METHODS.keys()
    for name, method in METHODS.items():
        assert f"| {method.sites} | {method.policy} | {method.forecast} |" in rows[name]
        assert method.paper.removeprefix("https://").removeprefix("arxiv.org/abs/") in rows[name]
