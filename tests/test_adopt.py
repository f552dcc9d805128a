"""Imports: what other engines would compute is what the schedule computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CALL, STEPS, embedded, tiny_flux
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, MagCacheConfig
from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS
from test_export import ENGINES, kernel, schedule, suited
from test_export_engines import computed

import adaptcache
from adaptcache.engines import engine_for
from adaptcache.engines.diffusers.identity import fingerprint
from adaptcache.engines.formats import export
from adaptcache.engines.formats.adopt import Target, adopt
from adaptcache.engines.formats.magcache import read_diffusers
from adaptcache.engines.formats.mask import computed_steps, played_steps
from adaptcache.engines.formats.read import interpret
from adaptcache.errors import ScheduleError
from adaptcache.runs import PipelineCall, PromptSet, Setup
from adaptcache.schedule.schedule import Schedule

LIKE = schedule([0])


def setup_of(pipe: Any) -> Setup:
    return Setup(engine_for(pipe), PipelineCall(STEPS, {"height": 16, "width": 16}))


def steps_of(data: Any, target: Schedule = LIKE, **options: Any) -> list[int]:
    return computed_steps(adopt(data, target, **options))


# Round trips


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("carried", [None, kernel(steps=28)])
def test_what_was_exported_comes_back_with_its_plan(engine: str, carried: Any, tmp_path: Path) -> None:
    plan = [0, 1, 2, 5, 8, 11, 15, 19, 23]
    original = suited(engine, schedule(plan, carried, steps=28, matched=carried is not None))
    exported = export(original, engine)
    path = exported.save(tmp_path / f"plan{exported.ending}")
    back = adopt(path, original)
    assert computed_steps(back) == list(np.flatnonzero(exported.plan.computed))
    assert export(back, engine).text.replace('"plan"', '"test"') == exported.text
    assert back.name == "plan" and back.denoiser == original.denoiser


def test_an_imported_schedule_is_saved_loaded_and_saved_to_the_same_bytes(tmp_path: Path) -> None:
    made = adopt([1, 0, 0, 1, 0, 0, 1, 0, 0], schedule([0], kernel()))
    first = made.save(tmp_path / "a.json").read_bytes()
    again = Schedule.load(tmp_path / "a.json").save(tmp_path / "b.json").read_bytes()
    assert first == again
    assert Schedule.load(tmp_path / "b.json").made["adopted"] == "mask"


def test_an_imported_mask_makes_its_calls_on_a_shifted_grid(pipe: FluxPipeline) -> None:
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    target = Target.of(setup_of(pipe), PromptSet(tuple(embedded(1))))
    assert np.ptp(np.diff(target.grid.times)) > 0.1  # far from even: steps and not times are kept
    with adaptcache.attach(pipe, adopt([1, 0, 1, 0, 0, 0, 0, 1], target)) as handle:
        CALL(pipe, embedded(1))
    assert handle.report().computed == [0, 2, 7]
    assert handle.report().evidence == "calibrated"


def test_asking_for_the_grid_costs_one_call_and_leaves_the_pipeline_alone(pipe: FluxPipeline) -> None:
    before, called = dict(vars(pipe.scheduler)), []
    hook = pipe.transformer.register_forward_hook(lambda *_: called.append(1))
    target = Target.of(setup_of(pipe), PromptSet(tuple(embedded(1))))
    hook.remove()
    assert called == [1]
    assert str(vars(pipe.scheduler)) == str(before)
    assert len(target.grid.times) == STEPS and target.denoiser == fingerprint(pipe)


# MagCache


@pytest.mark.parametrize("seed", range(3))
def test_magcache_is_played_as_diffusers_runs_it(seed: int) -> None:
    random = np.random.default_rng(seed)
    given = {
        "threshold": random.uniform(0.02, 0.3), "max_skip_steps": int(random.integers(1, 5)),
        "retention_ratio": random.uniform(0, 0.4), "num_inference_steps": STEPS,
        "mag_ratios": random.uniform(0.9, 1.1, STEPS + seed * 3).tolist(),
    }  # fmt: skip
    pipe = tiny_flux()
    pipe.transformer.enable_cache(MagCacheConfig(**given))
    expected = computed(pipe, pipe.transformer.transformer_blocks[0])
    assert [steps_of(given, schedule([0], steps=STEPS))] == expected


@pytest.mark.parametrize(
    ("threshold", "longest", "first", "expected"),
    [(0.24, 5, 3, "1110010001000001000001000010"), (0.06, 3, 6, "1111110101000100010001001011")],
)
def test_the_published_ratios_of_flux_give_their_known_plans(
    threshold: float, longest: int, first: int, expected: str
) -> None:
    config = {"mag_ratios": FLUX_MAG_RATIOS.tolist(), "threshold": threshold, "max_skip_steps": longest}
    steps = played_steps(read_diffusers({**config, "retention_ratio": first / 28}, None).rule, 28)
    assert "".join(str(int(step in steps)) for step in range(28)) == expected


# Other formats


def test_smoothcache_has_a_mask_for_each_type_of_layers_and_adopted_it_computes_where_any_has() -> None:
    lists = {"attn1": [1, 0, 0, 1, 0, 0, 0, 0, 0], "ff": [1, 0, 1, 0, 0, 0, 0, 0, 1]}
    _, settings = interpret(lists)
    rules = [(rule.site, rule.steps(tuple(1 - i / 9 for i in range(9)))) for rule in (settings.rule, *settings.more)]
    assert rules == [("attention", [0, 3]), ("mlp", [0, 2, 8])]
    assert steps_of(lists) == steps_of({"temporal": lists["attn1"], "ff": lists["ff"]}) == [0, 2, 3, 8]
    with pytest.raises(ScheduleError, match=r"have one length, got .'attn1': 9, 'ff': 2"):
        interpret({**lists, "ff": [1, 0]})


def test_budcache_lists_the_steps_that_are_not_computed() -> None:
    assert steps_of([1, 2, 4, 5, 7]) == steps_of({"cache_step": [1, 2, 4, 5, 7]}) == [0, 3, 6, 8]
    with pytest.raises(ScheduleError, match=r"a skipped step is not in \[0, 8\]"):
        steps_of([1, 12])
    for wrong in (1.5, "2"):
        with pytest.raises(ScheduleError, match=f"got {wrong!r}"):
            steps_of({"cache_step": [wrong]})


def test_a_list_of_zeros_and_ones_is_a_mask_and_step_0_is_always_computed() -> None:
    assert steps_of([0, 0, 1, 0, 0, 0, 1, 0, 0]) == [0, 2, 6]


def test_a_kind_can_be_named_where_the_data_do_not_tell() -> None:
    assert steps_of([1, 0, 0, 0, 0, 0, 0, 0, 0], kind="mask") == [0]
    with pytest.raises(LookupError, match="no format 'teaspoon'; there are diffusers"):
        steps_of([1], kind="teaspoon")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"steps_computation_mask": "fast"}, r"the preset 'fast' is no mask"),
        ({"steps_computation_mask": [1, 2, 0]}, r"is a list of 0 and 1, got \[1, 2, 0\]"),
        ({"steps_computation_mask": [1, 0]}, "are for 2 steps, the target has 9"),
        ({"coefficients": [1.0, 2.0, 0.1, 0.0, 0.3]}, "coefficients without a threshold"),
        ({"coefficients": [1.0, 2.0], "rel_l1_thresh": 0.2}, "polynomial decides during the run"),
        ({"scm_compute_bins": [1]}, "no sglang settings: KeyError 'scm_cache_bins'"),
        ({"mag_ratios": 3}, "no diffusers settings: TypeError"),
        ({"threshold": 0.1}, "of no known kind: threshold"),
        ([0.9, 1.0], "does not say how it is used"),
        (
            {"mag_threshold": 0.1, "mag_ratios": [1.0], "num_inference_steps": 1e12},
            "a run has 1 to 1024 steps",
        ),
        ({"infer_steps": 10**9, "magcache_ratios": [[1.0], [1.0]]}, "a run has 1 to 1024 steps"),
        ({"cache_step": [1], "steps": 10**9}, "a run has 1 to 1024 steps"),
        ({"scm_compute_bins": [10**9], "scm_cache_bins": [1]}, "a run has 1 to 1024 steps"),
    ],
)
def test_settings_that_hold_no_plan_are_refused_in_one_line(data: Any, message: str) -> None:
    with pytest.raises(ScheduleError, match=message) as caught:
        adopt(data, LIKE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is neither JSON nor YAML"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"hello", "holds no cache settings: it is a str"),
        (b"a: !!python/object/apply:os.getcwd []", "is neither JSON nor YAML"),
        (b" " * (2**20 + 1), "is larger than 1 MB"),
    ],
)
def test_a_bad_file_is_one_clear_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(ScheduleError, match=message) as caught:
        adopt(path, LIKE)
    assert "\n" not in str(caught.value)
    with pytest.raises(ScheduleError, match="cannot read"):
        adopt(tmp_path / "none.json", LIKE)


def test_files_of_other_people_are_read(tmp_path: Path) -> None:
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps({"cache_config": {"steps_computation_mask": [1, 1, 0, 0, 1, 0, 0, 1, 0]}}))
    assert steps_of(path) == [0, 1, 4, 7]
