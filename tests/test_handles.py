"""What a handle does around and in the middle of runs: pauses, own loops, threads, reports; arguments of verbs."""

import threading

import diffusers
import numpy as np
import pytest
import torch

import adaptcache
from adaptcache import Profile
from adaptcache.comparison.compare import CompareOptions, find_methods
from adaptcache.errors import AttachError, LoopError, ScheduleError
from tests import toy
from tests.euler import EulerEngine
from tests.pipelines.setup import noise
from tests.pipelines.table import built, counted, generated, planned, same
from tests.test_surprises import loop

PLAN, SD = [0, 1, 3], "Stable Diffusion 1.5"
QUICK = {"effort": 0, "progress": False}


def by_hand(setup):
    with torch.no_grad():
        return list(loop(setup, setup.pipe, noise(1, 1, 4, 8, 8)))


def test_a_loop_of_ones_own_runs_in_full_while_the_schedule_is_paused():
    setup = built(SD)
    full = by_hand(setup)
    with adaptcache.attach(setup.pipe, planned(setup, PLAN)) as handle, counted(setup.pipe) as calls:
        with handle.paused(), handle.loop():
            assert same(by_hand(setup), full) and len(calls) == setup.steps
        with handle.loop():
            cached = by_hand(setup)
        assert not same(cached, full) and len(calls) == setup.steps + len(PLAN)


def test_a_schedule_is_paused_in_the_middle_of_a_loop_of_ones_own_too():
    setup = built(SD)
    full = generated(setup)
    with adaptcache.attach(setup.pipe, planned(setup, PLAN)) as handle, torch.no_grad():
        with handle.loop():
            cached = list(loop(setup, setup.pipe, noise(1, 1, 4, 8, 8)))
        with handle.loop():
            run, made = loop(setup, setup.pipe, noise(1, 1, 4, 8, 8)), []
            for _ in range(setup.steps):
                made.append(next(run))
                with handle.paused():
                    hidden = setup.prompts[0]["prompt_embeds"]
                    seen = setup.pipe.unet(noise(2, 1, 4, 8, 8), 500, encoder_hidden_states=hidden, return_dict=False)
            assert same(made, cached) and handle.report().computed == PLAN
        with handle.paused():
            true = setup.pipe.unet(noise(2, 1, 4, 8, 8), 500, encoder_hidden_states=hidden, return_dict=False)
            assert same(generated(setup), full)
    assert same(seen, true)


def test_pauses_that_overlap_end_with_the_last_one():
    setup = built(SD)
    full = generated(setup)
    with adaptcache.attach(setup.pipe, planned(setup, PLAN)) as handle:
        first, second = handle.paused(), handle.paused()
        first.__enter__(), second.__enter__(), first.__exit__(None, None, None)
        assert same(generated(setup), full)
        second.__exit__(None, None, None)
        with counted(setup.pipe) as calls:
            generated(setup)
    assert len(calls) == len(PLAN)


def test_a_handle_that_is_closed_by_another_thread_waits_for_the_end_of_the_run():
    setup = built(SD)
    handle = adaptcache.attach(setup.pipe, planned(setup, PLAN))
    cached, closing = generated(setup), threading.Thread(target=handle.close)
    kind = type(setup.pipe)

    class Closes(kind):  # between a denoiser call that is skipped and the step of the scheduler
        @property
        def guidance_scale(self):
            loop = handle._gate.loop
            if loop and loop.index == 2 and loop.branch >= 0 and not closing.ident:
                closing.start()
                closing.join(0.2)
            return super().guidance_scale

    setup.pipe.__class__ = Closes
    assert same(generated(setup), cached)
    closing.join(60)
    with counted(setup.pipe) as calls:
        generated(setup)
    assert handle._gate.closed and len(calls) == setup.steps


@pytest.mark.parametrize("again", [lambda setup, handle: generated(setup), lambda setup, handle: enter(handle.loop())])
def test_what_begins_within_a_loop_of_ones_own_is_not_taken_for_it(again):
    setup = built(SD)
    with adaptcache.attach(setup.pipe, planned(setup, PLAN)) as handle:
        with pytest.raises(AttachError, match=r"loop\(\) is open.*call StableDiffusionPipeline.*after"), handle.loop():
            again(setup, handle)
        generated(setup)
        assert handle.report().evidence == "calibrated"


def enter(context):
    with context:
        pass


def test_timesteps_that_were_set_before_a_loop_of_ones_own_are_named():
    setup = built(SD)
    pipe, hidden = setup.pipe, setup.prompts[0]["prompt_embeds"]
    with adaptcache.attach(pipe, planned(setup, PLAN)) as handle, torch.no_grad():
        pipe.scheduler.set_timesteps(setup.steps)
        x, t = noise(1, 1, 4, 8, 8), pipe.scheduler.timesteps[0]
        with pytest.raises(LoopError, match="set before this call: call set_timesteps"), handle.loop():
            pipe.scheduler.step(pipe.unet(x, t, hidden, return_dict=False)[0], t, x)


def test_a_report_stays_that_of_the_last_run():
    setup = built(SD)
    schedule = adaptcache.calibrate(setup.pipe, setup.prompts[:1], setup.steps, budget=0.5, **setup.call, **QUICK)
    with adaptcache.attach(setup.pipe, schedule, strict=True) as handle:
        generated(setup)
        report = handle.report()
        assert report.evidence == "calibrated"
        with pytest.raises(ScheduleError, match="another guidance"):
            generated(setup, guidance_scale=3.0)
        assert handle.report() == report
    pipe = toy.Pipe()
    geared = adaptcache.calibrate(pipe, toy.PROMPTS, 8, gears=[0.25, 0.5], min_psnr=20, progress=False)
    with adaptcache.attach(pipe, geared) as handle:
        toy.run(pipe, 8)
        report = handle.report()
        handle.gear = 1 - report.gear
        assert handle.report() == report and handle.gear != report.gear


def test_image_to_image_that_leaves_no_step_of_own_times_is_refused():
    setup = built("Stable Diffusion 3")
    own = adaptcache.calibrate(setup.pipe, setup.prompts[:1], 8, budget=0.375, times="own", **setup.call, **QUICK)
    pipe = diffusers.StableDiffusion3Img2ImgPipeline(**setup.pipe.components)
    pipe.set_progress_bar_config(disable=True)
    with adaptcache.attach(pipe, own), pytest.raises(ScheduleError, match="begins or ends within them"):
        generated(setup, pipe, image=noise(3, 1, 3, 16, 16).sigmoid(), strength=0.5, num_inference_steps=8)


def test_own_times_are_not_calibrated_on_a_part_of_the_grid():
    setup = built("Flux image-to-image")
    call = {**setup.call, "strength": 0.5}
    with pytest.raises(ScheduleError, match=r"these take 4 of its 8 steps \(strength\?\)"):
        adaptcache.calibrate(setup.pipe, setup.prompts[:1], 8, speed=2, times="own", **call, **QUICK)


def test_a_hook_begins_anew_after_a_run_that_was_broken_off():
    setup = built("Flux")
    schedule = adaptcache.calibrate(setup.pipe, setup.prompts[:1], setup.steps, speed=2, **setup.call, **QUICK)

    def breaks(*_):
        raise ZeroDivisionError

    with adaptcache.hook(setup.pipe.transformer, schedule):
        made = generated(setup)
        with setup.pipe.transformer.proj_out.register_forward_hook(breaks), pytest.raises(ZeroDivisionError):
            generated(setup)
        assert same(generated(setup), made)
        with pytest.raises(ZeroDivisionError):
            generated(setup, callback_on_step_end=breaks)
        with pytest.raises(LoopError, match="a run was broken off there: begin again"):
            generated(setup)
        assert same(generated(setup), made)


def test_a_hook_below_a_schedule_was_not_measured():
    setup = built("Flux")
    schedule = adaptcache.calibrate(setup.pipe, setup.prompts[:1], setup.steps, speed=2, **setup.call, **QUICK)
    with adaptcache.hook(setup.pipe.transformer, schedule):
        with (
            pytest.warns(UserWarning, match=r"on top of adaptcache\.hook"),
            adaptcache.attach(setup.pipe, schedule) as handle,
        ):
            generated(setup)
        assert handle.report().evidence == "extrapolated"
        with pytest.raises(ValueError, match=r"adaptcache\.hook is on"):
            adaptcache.calibrate(setup.pipe, setup.prompts[:1], setup.steps, speed=2, **setup.call, **QUICK)


def test_easycache_takes_several_images_with_guidance():
    setup = built(SD)
    with adaptcache.attach(setup.pipe, adaptcache.Schedule.of("easycache", threshold=0.2)) as handle:
        generated(setup, num_inference_steps=12, num_images_per_prompt=2)
        assert handle.report().skipped
        latents = noise(5, 1, 4, 8, 8)
        generated(setup, num_inference_steps=12, latents=latents)
        alone = handle.report().calls
        generated(setup, num_inference_steps=12, latents=latents.repeat(2, 1, 1, 1), num_images_per_prompt=2)
        assert handle.report().calls == alone


# Arguments of the verbs


def test_held_out_prompts_that_are_calibration_prompts_are_warned_of():
    prompts = list(toy.PROMPTS)
    with pytest.warns(UserWarning, match="1 of 2 held-out prompts are calibration prompts") as warned:
        adaptcache.calibrate(toy.Pipe(), prompts, 8, speed=2, eval_prompts=[prompts[0].upper(), "new"], **QUICK)
    assert warned[0].filename == __file__
    setup = built("Flux")
    with pytest.warns(UserWarning, match="1 of 1 held-out prompts") as warned:
        options = {"methods": ["adaptcache"], "progress": False, **setup.call}
        adaptcache.compare(setup.pipe, setup.prompts[:1], setup.prompts[:1], [0.5], 6, **options)
    assert warned[0].filename == __file__


def test_held_out_prompts_that_come_twice_are_warned_of():
    with pytest.warns(UserWarning, match="1 of 3 held-out prompts come more than once"):
        adaptcache.calibrate(toy.Pipe(), toy.PROMPTS, 8, speed=2, eval_prompts=["new", "newer", "New "], **QUICK)


@pytest.mark.parametrize("name", ["num_images_per_prompt", "num_videos_per_prompt"])
def test_several_samples_of_a_prompt_are_no_prompts(name):
    setup = built("Flux" if "images" in name else "Wan 2.1")
    with counted(setup.pipe) as calls, pytest.raises(ValueError, match=f"one sample here: leave {name} out"):
        adaptcache.calibrate(setup.pipe, setup.prompts[:1], 6, speed=2, **setup.call, **{name: 2}, **QUICK)
    assert not calls


def test_an_argument_is_given_by_prompts_or_for_all_of_them():
    setup = built("Flux")
    rows = [{**row, "height": 24} for row in setup.prompts]
    with counted(setup.pipe) as calls, pytest.raises(TypeError, match="height is given by the prompts and for all"):
        adaptcache.calibrate(setup.pipe, rows[:2], 6, speed=2, **setup.call, **QUICK)
    assert not calls


@pytest.mark.parametrize("scales", [(3.0, 3.0), (3.0, 2.5)])
def test_guidance_that_all_prompts_give_is_that_of_the_calibration(scales):
    setup = built(SD)
    rows = [{**row, "guidance_scale": scale} for row, scale in zip(setup.prompts, scales, strict=False)]
    schedule = adaptcache.calibrate(setup.pipe, rows, 6, speed=2, **setup.call, **QUICK)
    with adaptcache.attach(setup.pipe, schedule, strict=True) as handle:
        generated(setup, guidance_scale=3.0)
        assert handle.report().evidence == "calibrated"
        if scales[0] == scales[1]:
            with pytest.raises(ScheduleError, match=r"guidance_scale 3\.0 and now 4"):
                generated(setup, guidance_scale=4.0)


@pytest.mark.parametrize(
    ("verb", "option", "says"),
    [
        ("calibrate", {"speed": "2"}, "speed must be a number, got '2'"),
        ("calibrate", {"speed": 2, "effort": "1"}, "effort must be a number"),
        ("calibrate", {"speed": True}, "speed must be a number, got True"),
        ("calibrate", {"speed": 2, "fit": {"history": 2}}, "fit must be a Fit"),
        ("calibrate", {"speed": 2, "cache_dir": 3}, "cache_dir must be a folder"),
        ("calibrate", {"speed": 2, "eval_prompts": None}, "eval_prompts .* must be a list of texts.* got None"),
        ("calibrate", {"gears": "0.3,0.5", "min_psnr": 30}, "gears must be a list, got '0.3,0.5'"),
        ("calibrate", {"gears": 0.5, "min_psnr": 30}, "gears must be a list, got 0.5"),
        ("calibrate", {"gears": ["0.3"], "min_psnr": 30}, "gears must be a number, got '0.3'"),
        ("compare", {"budgets": 0.5}, "budgets must be a list, got 0.5"),
        ("compare", {"budgets": [0.5], "methods": "L2P"}, "methods must be a list, got 'L2P'"),
        ("compare", {"budgets": [0.5], "refine": 1.5}, "refine must be a whole number, got 1.5"),
        ("compare", {"budgets": [0.5], "pipe": EulerEngine()}, "pipeline of diffusers, got a EulerEngine"),
        ("tune", {"max_calls": "4"}, "max_calls must be a number"),
        ("tune", {"trials": "3"}, "trials must be a number"),
    ],
)
def test_what_is_of_another_kind_is_named(verb, option, says):
    given = {"pipe": toy.Pipe(), "prompts": toy.PROMPTS[:2], "num_inference_steps": 8, **option}
    given |= {"eval_prompts": toy.PROMPTS[2:]} if verb == "compare" else {}
    with pytest.raises(TypeError, match=says):
        getattr(adaptcache, verb)(**given)


def test_methods_of_a_generator_are_those_that_it_names():
    chosen = CompareOptions(methods=(name for name in ["L2P"]))
    assert find_methods(chosen.methods) == find_methods(chosen.methods) == ["L2P"]


def test_equal_profiles_are_equal(tmp_path):
    profile = toy.profile()
    assert Profile.load(profile.save(tmp_path / "x.safetensors")) == profile != toy.profile(8)


def test_the_cells_of_a_matrix_are_checked_before_any_run():
    setup = built("Flux")
    how = {"eval_prompts": setup.prompts[1:], "speed": 2, **setup.call, **QUICK}
    with counted(setup.pipe) as calls, pytest.raises(TypeError, match="takes no hieght"):
        adaptcache.calibrate(setup.pipe, setup.prompts[:1], 6, matrix=[{"hieght": 32}], **how)
    assert not calls
    made = adaptcache.calibrate(setup.pipe, setup.prompts[:1], 6, matrix={"num_inference_steps": np.int64(4)}, **how)
    assert [type(cell.changed["num_inference_steps"]) for cell in made.evidence.matrix] == [int]


def test_groups_may_be_an_array_and_first_a_number_of_numpy():
    setup = built("Flux")
    how = {**setup.call, **QUICK}
    certified = {"min_psnr": 10, "max_failure_rate": 0.5, "confidence": 0.6, "certify": True}
    schedule = adaptcache.calibrate(
        setup.pipe, setup.prompts[:1], 6, speed=2, eval_prompts=setup.prompts[1:], groups=np.arange(2), **certified,
        **how,
    )  # fmt: skip
    assert schedule.evidence.certificate.certified is not None
    del how["effort"]
    assert adaptcache.evaluate(setup.pipe, schedule, setup.prompts[1:], 6, first=np.int64(1), **how)[1].calls == 3
