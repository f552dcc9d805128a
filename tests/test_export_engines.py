"""Exports in the real engines: they make exactly the planned calls on a real pipeline."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import yaml
from conftest import STEPS, embedded, tiny_flux
from diffusers import MagCacheConfig
from diffusers.utils import logging
from serving_loops import GEN, OMNI, SGLANG, SGLANG_ROOTS, VLLM_ROOTS, installed
from test_export import kernel, schedule
from wheels import only

from adaptcache.engines.formats import export
from tests.calls import Call

CALL = Call(STEPS, {"height": 16, "width": 16})
COMPUTE = [[0, 1, 4, 6], [0, 5], [0, 2, 4, 7]]


def computed(pipe: Any, block: torch.nn.Module, call: Call = CALL, branches: int = 1) -> list[list[int]]:
    """Runs a pipeline and returns the numbers of the steps that computed a block, by branch.

    The block's attention is watched, as the engines replace the forwards of the blocks themselves.
    """
    result: list[list[int]] = [[] for _ in range(branches)]
    done, seen = [0], [False]

    def ran(*_: Any) -> None:
        seen[0] = True

    def stepped(*_: Any) -> None:
        if seen[0]:
            result[done[0] % branches].append(done[0] // branches)
        done[0], seen[0] = done[0] + 1, False

    watched = [block.attn.register_forward_hook(ran), pipe.transformer.register_forward_hook(stepped)]
    try:
        call(pipe, embedded(1))
    finally:
        for handle in watched:
            handle.remove()
    assert done[0] == call.steps * branches
    return result


@pytest.fixture
def flux() -> Any:
    return tiny_flux(num_layers=2, num_single_layers=2)


@pytest.mark.parametrize("compute", COMPUTE)
def test_stock_diffusers_makes_exactly_the_planned_calls(flux: Any, compute: list[int]) -> None:
    exported = export(schedule(compute, matched=False, steps=STEPS), "diffusers")
    flux.transformer.enable_cache(MagCacheConfig(**json.loads(exported.text)))
    blocks = [flux.transformer.transformer_blocks[0], flux.transformer.single_transformer_blocks[-1]]
    for block in blocks * 2:  # the second run starts afresh
        assert computed(flux, block) == [compute]


def test_stock_diffusers_follows_the_plan_made_for_reuse(flux: Any) -> None:
    exported = export(schedule([0, 1, 2], kernel(steps=STEPS), steps=STEPS), "diffusers")
    flux.transformer.enable_cache(MagCacheConfig(**json.loads(exported.text)))
    plan = [i for i, step in enumerate(exported.plan.computed) if step]
    assert plan != [0, 1, 2]
    assert computed(flux, flux.transformer.transformer_blocks[1]) == [plan]


def test_stock_diffusers_follows_the_plan_in_both_branches_of_guidance(flux: Any) -> None:
    negative = {f"negative_{name}": value for name, value in embedded(1, seed=9)[0].items()}
    call = Call(STEPS, {"height": 16, "width": 16, "true_cfg_scale": 3.0, **negative})
    exported = export(schedule([0, 2, 3], matched=False, steps=STEPS), "diffusers")
    flux.transformer.enable_cache(MagCacheConfig(**json.loads(exported.text)))
    block = flux.transformer.transformer_blocks[0]
    assert computed(flux, block, call, branches=2) == [[0, 2, 3], [0, 2, 3]]


def test_a_mask_of_ones_changes_nothing_in_stock_diffusers(flux: Any) -> None:
    plain = CALL(flux, embedded(1))
    exported = export(schedule(list(range(STEPS)), matched=False, steps=STEPS), "diffusers")
    flux.transformer.enable_cache(MagCacheConfig(**json.loads(exported.text)))
    assert torch.equal(CALL(flux, embedded(1)), plain)


# cache-dit


@pytest.fixture(scope="module")
def dit() -> Any:
    before = logging.get_verbosity()
    module = pytest.importorskip("cache_dit")
    yield module
    logging.set_verbosity(before)


@pytest.mark.parametrize("compute", COMPUTE)
def test_cache_dit_makes_exactly_the_planned_calls(flux: Any, dit: Any, compute: list[int], tmp_path) -> None:
    exported = export(schedule(compute, matched=False, steps=STEPS), "cache-dit")
    path = exported.save(tmp_path / "plan.yaml")
    blocks = flux.transformer.transformer_blocks
    first, second = blocks[0], blocks[1]
    dit.enable_cache(flux, **dit.load_configs(str(path)))
    try:
        assert computed(flux, second) == [compute]
        assert computed(flux, second) == [compute]
        assert computed(flux, first) == [list(range(STEPS))]  # the first block always runs
    finally:
        dit.disable_cache(flux)


@pytest.mark.parametrize("compute", [*COMPUTE, [0], list(range(STEPS)), [0, 7]])
def test_bins_become_the_mask_again_in_cache_dit(dit: Any, compute: list[int]) -> None:
    exported = export(schedule(compute, matched=False, steps=STEPS), "sglang")
    given = json.loads(exported.text)
    mask = dit.steps_mask(
        compute_bins=given["scm_compute_bins"], cache_bins=given["scm_cache_bins"], total_steps=STEPS
    )
    assert tuple(mask) == exported.plan.computed


def test_every_key_of_the_xdit_json_is_one_of_cache_dit(dit: Any) -> None:
    given = json.loads(export(schedule([0, 3]), "xdit").text)
    known = set(dit.DBCacheConfig.__dataclass_fields__) | {"scm_policy", "enable_taylorseer"}  # xDiT's own
    assert set(given) <= known


# cache-dit with our calibrator


def test_a_table_of_weights_runs_in_cache_dit(flux: Any, dit: Any) -> None:
    from adaptcache.engines.cache_dit import configs, weights_of

    fitted = schedule([0, 1, 4, 6], kernel(steps=STEPS), steps=STEPS)
    plan, table = weights_of(fitted)
    assert plan == [0, 1, 4, 6] and [bool(row) for row in table] == [i not in plan for i in range(STEPS)]
    block = flux.transformer.transformer_blocks[1]
    dit.enable_cache(flux, **configs(fitted))
    try:
        assert computed(flux, block) == [plan]
        weighted = CALL(flux, embedded(1))
        assert torch.equal(CALL(flux, embedded(1)), weighted)  # the second run starts afresh
    finally:
        dit.disable_cache(flux)
    reused = schedule([0, 1, 4, 6], matched=False, steps=STEPS)
    dit.enable_cache(flux, **dit.load_configs(yaml.safe_load(export(reused, "cache-dit").text)))
    try:
        assert not torch.equal(CALL(flux, embedded(1)), weighted)  # the weights are not those of reuse
    finally:
        dit.disable_cache(flux)


def test_a_table_of_reuse_is_the_reuse_of_cache_dit(flux: Any, dit: Any) -> None:
    import cache_dit

    from adaptcache.engines.cache_dit import _kinds
    from adaptcache.engines.formats.cache_dit import mask_config
    from adaptcache.engines.formats.mask import ReusePlan

    mask = ReusePlan(tuple(int(i in (0, 1, 4, 6)) for i in range(STEPS)))
    table = tuple(() if i in (0, 1, 4, 6) else (1.0,) for i in range(STEPS))
    found = []
    for more in ({}, {"calibrator_config": _kinds()(table=table)}):
        dit.enable_cache(flux, cache_config=cache_dit.DBCacheConfig(**mask_config(mask)), **more)
        try:
            found.append(CALL(flux, embedded(1)))
        finally:
            dit.disable_cache(flux)
    torch.testing.assert_close(*found)


def test_the_interface_of_calibrators_is_that_of_cache_dit(dit: Any) -> None:
    from cache_dit.caching.cache_contexts.calibrators import CalibratorBase

    from adaptcache.engines.cache_dit import TableCalibrator

    assert {name for name in vars(CalibratorBase) if not name.startswith("_")} == {
        name for name in vars(TableCalibrator) if not name.startswith("_")
    }


# The engines' own code, out of their wheels (`make contracts`)

MAGCACHE = tuple(f"{OMNI}cache.magcache.{name}" for name in ("config", "state", "strategy", "hook", "backend"))


@pytest.mark.skipif(not installed("vllm_omni"), reason="the wheel of vllm_omni is not on the path: make contracts")
@pytest.mark.parametrize("compute", COMPUTE)
def test_the_magcache_of_vllm_omni_makes_exactly_the_planned_calls(flux: Any, compute: list[int]) -> None:
    exported = export(schedule(compute, matched=False, steps=STEPS), "vllm-omni")
    with only(VLLM_ROOTS, (f"{OMNI}data", f"{OMNI}cache.base", f"{OMNI}hooks.base", *MAGCACHE)) as modules:
        config = modules[0].DiffusionCacheConfig.from_dict(json.loads(exported.text))
        assert not config._extra_params  # all keys are known
        backend = modules[-1].MagCacheBackend(config)
        backend.enable(flux)
        assert computed(flux, flux.transformer.transformer_blocks[1]) == [compute]


@pytest.mark.skipif(not installed("sglang"), reason="the wheel of sglang is not on the path: make contracts")
@pytest.mark.parametrize("compute", COMPUTE)
def test_sglang_makes_the_mask_of_the_bins(dit: Any, compute: list[int]) -> None:
    exported = export(schedule(compute, matched=False, steps=STEPS), "sglang")
    integration = f"{GEN}runtime.cache.cache_dit_integration"
    roots = tuple(root for root in SGLANG_ROOTS if root != "cache_dit")
    with only(roots, (*SGLANG[:-1], integration, SGLANG[-1])) as modules:
        stage = modules[-1].DenoisingStage.__new__(modules[-1].DenoisingStage)
        stage._cache_dit_request_overrides = modules[-2].resolve_cache_dit_request_overrides(json.loads(exported.text))
        _, policy, mask, _ = stage._cache_dit_scm_masks(STEPS)
        assert policy == "static" and tuple(mask) == exported.plan.computed
        _, _, shorter, _ = stage._cache_dit_scm_masks(STEPS - 1)
        assert tuple(shorter) == exported.plan.computed[:-1]  # cut without a word, as the export says
        with pytest.raises(AssertionError):
            stage._cache_dit_scm_masks(STEPS + 1)


@pytest.mark.skipif(not installed("xfuser"), reason="the wheel of xfuser is not on the path: make contracts")
@pytest.mark.parametrize("compute", COMPUTE)
def test_xdit_builds_the_mask_and_nothing_that_would_replace_it(dit: Any, compute: list[int]) -> None:
    exported = export(schedule(compute, matched=False, steps=STEPS), "xdit")
    true = ("xfuser.model_executor.cache.presets", "xfuser.model_executor.cache.adapters.cache_dit")
    with only(("xfuser",), true) as (presets, adapter):
        preset = presets.DBCachePreset()
        config, calibrator = adapter._build_config(STEPS, preset, exported.text, False, dit.DBCacheConfig)
        assert tuple(config.steps_computation_mask) == exported.plan.computed and calibrator is None
        assert config.steps_computation_policy == "static" and config.max_warmup_steps == 0
        with pytest.raises(ValueError, match="Unknown --cache_config keys"):  # without a preset, as the export says
            adapter._build_config(STEPS, {}, exported.text, False, dit.DBCacheConfig)
