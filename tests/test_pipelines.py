"""Every kind of pipeline, built from its true classes with tiny random weights and truly called."""

import pytest

import adaptcache
from adaptcache.cache import Cache
from adaptcache.engines.diffusers.components import denoisers_of
from adaptcache.evaluation.metrics import CEILING
from docs.support import measured
from tests.pipelines.audio import AUDIO
from tests.pipelines.flux import FLUXES
from tests.pipelines.table import MORE, TABLE, built, counted, generated, grid_of, planned, same
from tests.pipelines.unet import UNET

FAST = ("Flux", "Stable Diffusion 1.5", "LTX-2", "Wan 2.2", "Z-Image", "ACE-Step")
everywhere = pytest.mark.parametrize("name", TABLE)
calibrated = pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in TABLE]
)


@everywhere
def test_a_plan_of_all_steps_changes_no_bit(name):
    setup = built(name)
    plain = generated(setup)
    with adaptcache.attach(setup.pipe, planned(setup, range(len(grid_of(setup))))) as handle:
        assert same(generated(setup), plain)
    assert handle.report().skipped == 0


@everywhere
def test_a_plan_makes_the_planned_calls_and_no_other(name):
    setup = built(name)
    with counted(setup.pipe) as full:
        plain = generated(setup)
    steps = len(grid_of(setup))
    assert len(full) == steps * setup.branches
    plan = [i for i in range(steps) if i % 3 != 2]
    with adaptcache.attach(setup.pipe, planned(setup, plan)) as handle, counted(setup.pipe) as made:
        cached = generated(setup)
    assert len(made) == len(plan) * setup.branches
    assert handle.report().calls == tuple((i in plan,) * setup.branches for i in range(steps))
    assert not same(cached, plain) and all(a.isfinite().all() for a in cached)


@everywhere
def test_nothing_is_left_after_close(name):
    setup = built(name)
    plain = generated(setup)
    parts = [setup.pipe, setup.pipe.scheduler]
    classes, keys = [type(part) for part in parts], [set(vars(d)) for d in denoisers_of(setup.pipe)]
    handle = adaptcache.attach(setup.pipe, planned(setup, [0, 2]))
    generated(setup)
    handle.close()
    assert [type(part) for part in parts] == classes
    assert [set(vars(d)) for d in denoisers_of(setup.pipe)] == keys
    assert same(generated(setup), plain)


@calibrated
def test_a_larger_budget_has_a_smaller_error_on_held_out_noise(name):
    setup = built(name)
    errors = []
    truth = generated(setup, sample=2)
    for budget in (0.34, 0.67, 1.0):
        schedule = adaptcache.calibrate(
            setup.pipe, setup.prompts[:2], setup.steps, budget=budget, pipe_kwargs=setup.call
        )  # fmt: skip
        with adaptcache.attach(setup.pipe, schedule):
            made = generated(setup, sample=2)
        errors.append(sum(float((a - b).square().mean() / b.var()) for a, b in zip(made, truth, strict=True)))
    assert errors[0] > errors[1] > errors[2] == 0


QUICK = (
    "Cosmos3OmniModularPipeline", "Flux3ModularPipeline", "LTX2ImageToVideoPipeline", "QwenImageEditPlusPipeline",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MORE]
)
def test_the_rest_of_what_diffusers_exports_is_exact_with_all_steps_and_calibrated_with_half_of_them(name):
    assert measured(name)["verdict"] == "works"


DECODES = [*FLUXES, *UNET, *AUDIO, "Stable Diffusion 3", "PixArt-Sigma", "DiT"]


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in DECODES]
)
def test_the_evidence_of_decoded_outputs_improves_with_the_budget(name, tmp_path):
    setup, cache = built(name), Cache(tmp_path)
    quality = []
    for budget in (0.34, 0.67, 1.0):
        schedule = adaptcache.calibrate(
            setup.pipe, setup.prompts[:2], setup.steps, eval_prompts=setup.prompts[2:], budget=budget,
            pipe_kwargs=setup.call, cache=cache,
        )  # fmt: skip
        assert schedule.evidence.calls[0] == len(schedule.rules[0].policy.steps(schedule.grid.times))
        quality.append(schedule.evidence.psnr["mean"])
    assert quality[0] < quality[1] < quality[2] == CEILING
