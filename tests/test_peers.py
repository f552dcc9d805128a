"""The same decisions and latents as the caches of diffusers, on the same model in a real pipeline."""

import flux
import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks.first_block_cache import FBCHeadBlockHook
from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS

import adaptcache
from adaptcache.forecasts.taylor import Taylor
from adaptcache.presets import resolve
from adaptcache.presets.prompts import read_prompts
from adaptcache.schedule.schedule import Schedule
from tests.calls import Call

STEPS = 12


def theirs(config, steps=STEPS, seeds=(0,)):
    pipe = flux.pipeline()
    pipe.transformer.enable_cache(config)
    made = []
    for seed in seeds:
        made.append(flux.run(pipe, steps, seed))
        pipe.transformer._reset_stateful_cache()
    return made


def ours(schedule, steps=STEPS, seeds=(0,)):
    pipe = flux.pipeline()
    with adaptcache.attach(pipe, schedule) as handle:
        made = [flux.run(pipe, steps, seed) for seed in seeds]
    return made, handle.report().computed


def same(a, b):
    return all(torch.allclose(x, y, atol=2e-5, rtol=1e-5) for x, y in zip(a, b, strict=True))


def differs(made):
    return not torch.allclose(made[0], flux.run(flux.pipeline(), STEPS), atol=1e-3)


@pytest.mark.parametrize("threshold, most, retention", [(0.06, 3, 0.2), (0.24, 5, 0.1), (0.5, 9, 0.0)])
def test_magcache_is_that_of_diffusers(threshold, most, retention):
    ratios = FLUX_MAG_RATIOS.tolist()
    config = MagCacheConfig(
        threshold=threshold, max_skip_steps=most, retention_ratio=retention, num_inference_steps=STEPS,
        mag_ratios=list(ratios),
    )  # fmt: skip
    schedule = Schedule.of("magcache", ratios=tuple(ratios), threshold=threshold, max_skip=most, retention=retention)
    made, computed = ours(schedule, seeds=(0, 1))
    assert len(computed) < STEPS and differs(made)
    assert same(theirs(config, seeds=(0, 1)), made)


@pytest.mark.parametrize("threshold", [0.05, 0.2, 0.3, 0.4, 0.6])
def test_first_block_cache_is_that_of_diffusers(threshold, monkeypatch):
    decisions, decide = [], FBCHeadBlockHook._should_compute_remaining_blocks

    def noted(self, residual):
        decisions.append(decide(self, residual))
        return decisions[-1]

    monkeypatch.setattr(FBCHeadBlockHook, "_should_compute_remaining_blocks", noted)
    peer = theirs(FirstBlockCacheConfig(threshold=threshold))
    made, computed = ours(Schedule.of("fbcache", threshold=threshold))
    assert computed == [i for i, flag in enumerate(decisions) if flag]
    assert same(peer, made)


def test_some_of_these_thresholds_skip():
    assert 1 < len(ours(Schedule.of("fbcache", threshold=0.4))[1]) < STEPS


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("interval, before", [(3, 3), (4, 2), (5, 3)])
def test_taylorseer_lite_is_that_of_diffusers(order, interval, before):
    config = TaylorSeerCacheConfig(
        cache_interval=interval, disable_cache_before_step=before, max_order=order, use_lite_mode=True,
        taylor_factors_dtype=torch.float32,
    )  # fmt: skip
    schedule = Schedule.of("taylorseer", interval=interval, warm_up=before, first_gap=2, order=order)
    made, computed = ours(schedule)
    assert before not in computed and before + 1 in computed  # the off-by-one of diffusers
    assert differs(made) and same(theirs(config), made)


def test_taylorseer_of_the_paper_computes_an_interval_after_its_warm_up():
    assert ours(Schedule.of("taylorseer", interval=3, warm_up=3))[1] == [0, 1, 2, 5, 8, 11]


@pytest.mark.parametrize("order", [0, 1])
def test_dbcache_with_a_static_mask_is_that_of_cache_dit(order):
    cache_dit = pytest.importorskip("cache_dit")
    # cache-dit takes no difference before its fourth computed step, as its counter starts at -1: hence four.
    mask = [1, 1, 1, 1, 0, 1, 0, 0, 1, 0, 0, 1]
    pipe = flux.pipeline(double=3, single=3)
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, max_warmup_steps=0, num_inference_steps=STEPS,
        steps_computation_mask=mask, steps_computation_policy="static", enable_separate_cfg=False,
    )  # fmt: skip
    forecaster = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order) if order else None
    cache_dit.enable_cache(pipe, cache_config=config, calibrator_config=forecaster)
    peer = flux.run(pipe, STEPS)
    rule = Schedule.of("scm", compute_steps=tuple(map(bool, mask))).rules[0]
    rule = rule.model_copy(update={"forecast": Taylor(order=order)})
    pipe = flux.pipeline(double=3, single=3)
    with adaptcache.attach(pipe, Schedule(name="dbcache", rules=(rule,))) as handle:
        assert torch.allclose(flux.run(pipe, STEPS), peer, atol=2e-5)
        assert handle.report().computed == [i for i, flag in enumerate(mask) if flag]


@pytest.mark.parametrize("order", [0, 1, 2])
def test_taylorseer_of_every_attention_is_that_of_diffusers(order):
    config = TaylorSeerCacheConfig(
        cache_interval=4, disable_cache_before_step=2, max_order=order, cache_identifiers=[r".*\.attn"],
        taylor_factors_dtype=torch.float32,
    )  # fmt: skip
    knobs = dict(interval=4, warm_up=2, first_gap=2, order=order)
    made, computed = ours(Schedule.of("taylorseer", site="attention", **knobs))
    assert computed == list(range(STEPS))  # what is skipped lies within
    assert differs(made) and same(theirs(config), made)


@pytest.fixture(scope="module")
def emoji():
    """The demo model, its call and a held-out prompt."""
    preset = resolve("emoji-flux-32")
    pipe = preset.load_pipeline("cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe, Call(preset.steps, preset.call), read_prompts(preset.prompts).held_out[:1]


def on_demo(emoji, config, schedule):
    """Returns how far both latents are apart, over how far caching moves them, and what we computed."""
    pipe, call, prompts = emoji
    full = call(pipe, prompts)
    with adaptcache.attach(pipe, schedule) as handle:
        made = call(pipe, prompts)
        report = handle.report()
    pipe.transformer.enable_cache(config)
    try:
        peer = call(pipe, prompts)
    finally:
        pipe.transformer.disable_cache()
    assert torch.equal(call(pipe, prompts), full)
    return float((made - peer).norm() / (made - full).norm()), report


@pytest.mark.slow
@pytest.mark.parametrize("name", ["magcache", "fbcache", "taylorseer", "pab", "fastercache"])
def test_the_demo_model_runs_as_with_diffusers(emoji, name):
    pipe, steps = emoji[0], emoji[1].steps
    ratios = FLUX_MAG_RATIOS.tolist()
    here = {"current_timestep_callback": lambda: pipe.current_timestep}
    identifiers = ("transformer_blocks",)
    config, schedule = {
        "magcache": lambda: (
            MagCacheConfig(
                threshold=0.24, max_skip_steps=5, retention_ratio=0.1, num_inference_steps=steps,
                mag_ratios=ratios,
            ),
            Schedule.of("magcache", ratios=tuple(ratios), threshold=0.24, max_skip=5, retention=0.1),
        ),
        "fbcache": lambda: (FirstBlockCacheConfig(threshold=0.1), Schedule.of("fbcache", threshold=0.1)),
        "taylorseer": lambda: (
            TaylorSeerCacheConfig(
                cache_interval=4, disable_cache_before_step=3, max_order=1, use_lite_mode=True,
                taylor_factors_dtype=torch.float32,
            ),
            Schedule.of("taylorseer", interval=4, warm_up=3, first_gap=2, order=1),
        ),
        "pab": lambda: (
            PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=3, **here),
            Schedule.of("pab", interval=3),
        ),
        "fastercache": lambda: (
            FasterCacheConfig(
                is_guidance_distilled=True, spatial_attention_block_identifiers=identifiers, **here
            ),
            Schedule.of("fastercache", kept=16),
        ),
    }[name]()  # fmt: skip
    apart, report = on_demo(emoji, config, schedule)
    skipped = [len(computed) < steps for computed in (report.sites or {"step": report.computed}).values()]
    print(f"{name}: {apart:.1e}")
    assert any(skipped) and apart < 1e-3, apart


@pytest.mark.slow
@pytest.mark.parametrize("order", [0, 1])
def test_the_demo_model_runs_as_with_cache_dit(emoji, order):
    cache_dit = pytest.importorskip("cache_dit")
    pipe, call, prompts = emoji
    mask = [1, 1, 1, 1, *([0, 1, 0, 0] * 6)]
    full = call(pipe, prompts)
    rule = Schedule.of("scm", compute_steps=tuple(map(bool, mask))).rules[0]
    rule = rule.model_copy(update={"forecast": Taylor(order=order)})
    with adaptcache.attach(pipe, Schedule(name="dbcache", rules=(rule,))) as handle:
        made = call(pipe, prompts)
        assert handle.report().computed == [i for i, flag in enumerate(mask) if flag]
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, max_warmup_steps=0, num_inference_steps=call.steps,
        steps_computation_mask=mask, steps_computation_policy="static", enable_separate_cfg=False,
    )  # fmt: skip
    forecaster = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order) if order else None
    other = resolve("emoji-flux-32").load_pipeline("cpu")
    cache_dit.enable_cache(other, cache_config=config, calibrator_config=forecaster)
    peer = call(other, prompts)
    apart = float((made - peer).norm() / (made - full).norm())
    print(f"cache-dit, order {order}: {apart:.1e}")
    assert len(mask) == call.steps and apart < 1e-3, apart
