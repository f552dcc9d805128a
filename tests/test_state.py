"""Runs that end in any way leave nothing behind that the next run could notice."""

import copy
import gc
import pickle
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import adaptcache
from adaptcache.engines.diffusers.components import denoisers_of
from adaptcache.engines.diffusers.engine import twin
from adaptcache.engines.diffusers.watch import watched
from adaptcache.errors import AttachError
from adaptcache.sites.interceptor import ModuleInterceptor
from tests.pipelines.table import built, counted, generated, planned, same

PLAN = [0, 1, 3]


class Abandoned(Exception):
    """A run is broken off by its caller."""


def breaks(error, at=2):
    def callback(pipe, step, timestep, tensors):
        if step == at:
            raise error
        return tensors

    return callback


def finished(setup, handle=None):
    generated(setup)


def failed(setup, handle=None):
    with pytest.raises(Abandoned):
        generated(setup, callback_on_step_end=breaks(Abandoned()))


def interrupted(setup, handle=None):
    with pytest.raises(KeyboardInterrupt):
        generated(setup, callback_on_step_end=breaks(KeyboardInterrupt()))


def failed_in_a_thread(setup, handle=None):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(failed, setup).result()


def loop(setup):
    """A denoising loop of the caller's own, as a generator that yields after each step."""
    pipe = setup.pipe
    pipe.scheduler.set_timesteps(setup.steps)
    x = torch.zeros(1, 4, 8, 8)
    hidden = setup.prompts[0]["prompt_embeds"]
    for t in pipe.scheduler.timesteps:
        u = pipe.unet(x, t, encoder_hidden_states=hidden, return_dict=False)[0]
        x = pipe.scheduler.step(u, t, x, return_dict=False)[0]
        yield x


def abandoned(setup, handle):
    with handle.loop():
        run = loop(setup)
        next(run), next(run), next(run)
        run.close()


ENDS = [finished, failed, interrupted, failed_in_a_thread, abandoned]
NEXT = {
    "same": {},
    "other steps": {"num_inference_steps": 9},
    "other batch": {"num_images_per_prompt": 2},
    "other size": {"height": 24, "width": 16},
    "no guidance": {"guidance_scale": 1.0},
}


@pytest.mark.filterwarnings("ignore:.*planned anew")
@pytest.mark.parametrize("follows", NEXT)
@pytest.mark.parametrize("ends", ENDS)
def test_the_next_run_is_as_fresh_as_the_first(ends, follows):
    setup = built("Stable Diffusion 1.5")
    schedule = planned(setup, PLAN)
    with adaptcache.attach(setup.pipe, schedule):
        fresh = generated(setup, **NEXT[follows])
    with adaptcache.attach(setup.pipe, schedule) as handle:
        ends(setup, handle)
        assert same(generated(setup, **NEXT[follows]), fresh)
        assert handle.report().skipped > 0


@pytest.mark.parametrize("ends", ENDS)
def test_another_schedule_after_a_run_is_as_fresh_as_the_first(ends):
    setup = built("Stable Diffusion 1.5")
    one, other = planned(setup, PLAN), planned(setup, [0, 4])
    with adaptcache.attach(setup.pipe, other):
        fresh = generated(setup)
    with adaptcache.attach(setup.pipe, one) as handle:
        ends(setup, handle)
    with adaptcache.attach(setup.pipe, other):
        assert same(generated(setup), fresh)


@pytest.mark.parametrize("ends", [failed, interrupted, finished])
def test_a_run_lets_go_of_its_tensors_when_it_ends(ends):
    setup = built("Stable Diffusion 1.5")
    kept = []
    original = setup.pipe.unet.forward
    with adaptcache.attach(setup.pipe, planned(setup, PLAN)) as handle:

        def forward(*args, **kwargs):
            output = original(*args, **kwargs)
            kept.append(weakref.ref(output[0]))
            return output

        setup.pipe.unet.forward = forward
        ends(setup)
        del setup.pipe.unet.forward
        gc.collect()
        assert kept and all(ref() is None for ref in kept)
        assert handle._gate.loop is None


def test_a_denoiser_of_an_abandoned_run_is_plain_in_other_hands():
    setup = built("Stable Diffusion 1.5")
    other = twin(setup.pipe)  # shares the weights, but not the module
    other.unet = setup.pipe.unet
    plain = generated(setup, other)
    with adaptcache.attach(setup.pipe, planned(setup, PLAN)):
        failed(setup)
        assert same(generated(setup, other), plain)


def test_two_threads_at_once_on_one_pipeline_are_refused_and_the_first_goes_on():
    setup = built("Stable Diffusion 1.5")
    inside, refused = threading.Event(), threading.Event()

    def waits(pipe, step, timestep, tensors):
        if step == 2:
            inside.set()
            assert refused.wait(60)
        return tensors

    with adaptcache.attach(setup.pipe, planned(setup, PLAN)), ThreadPoolExecutor(1) as pool:
        right = generated(setup)
        first = pool.submit(generated, setup, callback_on_step_end=waits)
        assert inside.wait(60)
        with pytest.raises(AttachError, match="two threads at once"):
            generated(setup)
        refused.set()
        assert same(first.result(), right)


@pytest.mark.parametrize("share", [False, True], ids=["own weights", "one denoiser for all"])
def test_pipelines_with_their_own_schedules_run_in_parallel_threads(share):
    setups = [built("Stable Diffusion 1.5") for _ in range(3)]
    if share:
        for setup in setups[1:]:
            setup.pipe.unet = setups[0].pipe.unet
    schedules = [planned(setup, plan) for setup, plan in zip(setups, ([0, 1, 3], [0, 2, 4, 5], [0, 3]), strict=True)]
    right = []
    for setup, schedule in zip(setups, schedules, strict=True):
        with adaptcache.attach(setup.pipe, schedule):
            right.append(generated(setup))
    handles = [adaptcache.attach(setup.pipe, schedule) for setup, schedule in zip(setups, schedules, strict=True)]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            assert all(same(a, b) for a, b in zip(pool.map(generated, setups), right, strict=True))
    for handle in handles:
        handle.close()
    assert not any(ModuleInterceptor.of(denoiser) for setup in setups for denoiser in denoisers_of(setup.pipe))


def test_four_images_of_a_batch_equal_four_single_ones():
    setup = built("Stable Diffusion 1.5")
    embeds = torch.cat([row["prompt_embeds"] for row in (*setup.prompts, setup.prompts[0])])
    negative = setup.call["negative_prompt_embeds"]
    noise = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(3))

    def images(rows):
        more = {
            "latents": noise[rows],
            "output_type": "latent",
            "negative_prompt_embeds": negative.repeat(len(rows), 1, 1),
        }
        size = {"height": 16, "width": 16, "num_inference_steps": setup.steps}
        return setup.pipe(prompt_embeds=embeds[rows], **more, **size, return_dict=False)[0]

    with adaptcache.attach(setup.pipe, planned(setup, PLAN)):
        singles = torch.cat([images([k]) for k in range(4)])
        assert torch.allclose(images([0, 1, 2, 3]), singles, rtol=1e-4, atol=1e-4)


def test_a_replaced_scheduler_is_refused():
    setup = built("Stable Diffusion 1.5")
    with adaptcache.attach(setup.pipe, planned(setup, PLAN)):
        setup.pipe.scheduler = copy.deepcopy(setup.pipe.scheduler)
        with pytest.raises(AttachError, match="scheduler was replaced"):
            generated(setup)


def test_a_second_schedule_on_one_pipeline_is_refused():
    setup = built("Stable Diffusion 1.5")
    schedule = planned(setup, PLAN)
    with adaptcache.attach(setup.pipe, schedule):
        with pytest.raises(AttachError, match="attached already"):
            adaptcache.attach(setup.pipe, schedule)
        with counted(setup.pipe) as calls:
            generated(setup)
    assert len(calls) == len(PLAN)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
def test_a_copy_of_an_attached_pipeline_is_plain_and_can_be_attached(copied):
    setup = built("Stable Diffusion 1.5")
    plain, schedule = generated(setup), planned(setup, PLAN)
    with adaptcache.attach(setup.pipe, schedule):
        cached, other = generated(setup), copied(setup.pipe)
        assert type(other) is type(setup.pipe) and id(other) not in watched
        assert same(generated(setup, other), plain)
        with adaptcache.attach(other, schedule):
            assert same(generated(setup, other), cached)
        assert same(generated(setup), cached)
    after = copied(setup.pipe)
    assert type(after) is type(setup.pipe) and type(after.scheduler) is type(setup.pipe.scheduler)
    assert same(generated(setup, after), plain)


def test_a_scheduler_copied_from_an_attached_one_forgets_the_gate_that_closed():
    setup = built("Stable Diffusion 1.5")
    with adaptcache.attach(setup.pipe, planned(setup, PLAN)):
        stray = copy.deepcopy(setup.pipe.scheduler)
    stray.set_timesteps(4)
    assert type(stray) is type(setup.pipe.scheduler)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_pipeline_may_be_cast_while_it_is_attached(dtype):
    setup = built("Flux")
    with adaptcache.attach(setup.pipe, planned(setup, PLAN)):
        single = generated(setup)
        setup.pipe.to(dtype)
        rows = [{name: value.to(dtype) for name, value in row.items()} for row in setup.prompts]
        cast = generated(type(setup)(setup.pipe, setup.call, rows))
    assert cast[0].dtype == dtype
    assert torch.allclose(cast[0].float(), single[0], atol=0.1)
    full = generated(type(setup)(setup.pipe, setup.call, rows))
    assert full[0].dtype == dtype and not same(full, cast)


def test_lora_may_be_loaded_and_unloaded_while_attached():
    peft = pytest.importorskip("peft")
    setup = built("Flux")
    schedule = planned(setup, PLAN)
    with adaptcache.attach(setup.pipe, schedule) as handle:
        before = generated(setup)
        torch.manual_seed(5)
        setup.pipe.transformer.add_adapter(
            peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
        )
        with_lora = generated(setup)
        assert not same(with_lora, before) and handle.report().computed == PLAN
        setup.pipe.unload_lora_weights()
        assert same(generated(setup), before)
    with pytest.warns(UserWarning, match="other weights"):
        setup.pipe.transformer.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
        adaptcache.attach(setup.pipe, schedule).close()
