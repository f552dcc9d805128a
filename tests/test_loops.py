"""One call of a pipeline with several denoising loops: FreeInit, clips made in segments."""

import functools
from dataclasses import replace

import diffusers
import pytest
import torch

import adaptcache
from adaptcache.engines.diffusers.grid import times_of
from adaptcache.engines.diffusers.identity import fingerprint
from adaptcache.forecasts.extrapolate import Extrapolate
from adaptcache.policies.plan import Plan
from adaptcache.schedule.format import Grid
from adaptcache.schedule.rule import Rule
from adaptcache.schedule.schedule import Schedule
from tests.pipelines.flux import flux_parts, flux_prompts
from tests.pipelines.setup import Setup, noise
from tests.pipelines.table import built, counted, generated
from tests.pipelines.unet import sd_parts

STEPS, LOOPS = 6, 3


class Segments(diffusers.FluxPipeline):
    """Makes its image again and again, as pipelines do that make a long clip bit by bit."""

    def __call__(
        self, prompt_embeds=None, pooled_prompt_embeds=None, num_inference_steps=STEPS, generator=None,
        output_type="latent", return_dict=True, segments=LOOPS, resets=False,
    ):  # fmt: skip
        for _ in range(segments):
            made = super().__call__(
                prompt_embeds=prompt_embeds, pooled_prompt_embeds=pooled_prompt_embeds, height=16, width=16,
                num_inference_steps=num_inference_steps, generator=generator, output_type=output_type,
                return_dict=return_dict,
            )  # fmt: skip
            if resets:  # ready for a next segment that never comes
                self.scheduler.set_timesteps(num_inference_steps, mu=0.5)
        return made


class Cached(Segments):
    """Calls its denoiser once more after each segment, as autoregressive pipelines do to fill a key-value cache."""

    def __call__(
        self, prompt_embeds=None, pooled_prompt_embeds=None, num_inference_steps=STEPS, generator=None,
        output_type="latent", return_dict=True,
    ):  # fmt: skip
        given = {"prompt_embeds": prompt_embeds, "pooled_prompt_embeds": pooled_prompt_embeds, "segments": 1}
        given |= {"generator": generator, "output_type": output_type, "return_dict": return_dict}
        for _ in range(2):
            last = {}
            keep = functools.partial(lambda last, module, args, kwargs: last.update(kwargs), last)
            with self.transformer.register_forward_pre_hook(keep, with_kwargs=True):
                made = super().__call__(**given, num_inference_steps=num_inference_steps)
            self.transformer(**last)
        return made


def segments():
    torch.manual_seed(0)
    return Setup(Segments(**flux_parts()), {}, flux_prompts())


def free_init():
    torch.manual_seed(0)
    parts = sd_parts()
    adapter = diffusers.MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_norm_num_groups=2,
        motion_num_attention_heads=2,
    )  # fmt: skip
    pipe = diffusers.AnimateDiffPipeline(
        vae=parts["vae"], text_encoder=None, tokenizer=None, unet=parts["unet"], motion_adapter=adapter,
        scheduler=diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False),
    )  # fmt: skip
    pipe.enable_free_init(num_iters=LOOPS, use_fast_sampling=False, method="butterworth")
    call = {"negative_prompt_embeds": noise(9, 1, 5, 16), "height": 16, "width": 16, "num_frames": 4}
    return Setup(pipe, call, [{"prompt_embeds": noise(k, 1, 5, 16)} for k in range(3)])


def run(setup, **more):
    return setup.pipe(
        **setup.prompts[0], **setup.call, num_inference_steps=STEPS, output_type="latent",
        generator=torch.Generator().manual_seed(3), **more,
    )  # fmt: skip


def by_hand(setup, steps):
    """Returns a schedule of one loop."""
    run(setup)
    times = times_of(setup.pipe.scheduler)
    grid = Grid(scheduler=type(setup.pipe.scheduler).__name__, times=times)
    rule = Rule(policy=Plan.of(steps, times), forecast=Extrapolate(order=1))
    return Schedule(name="by hand", denoiser=fingerprint(setup.pipe), grid=grid, rules=(rule,))


@pytest.fixture(params=[free_init, segments])
def setup(request):
    made = request.param()
    made.pipe.set_progress_bar_config(disable=True)
    return made


def test_the_report_counts_the_calls_of_all_loops(setup):
    schedule = by_hand(setup, [0, 1, 3])
    with counted(setup.pipe) as calls, adaptcache.attach(setup.pipe, schedule) as handle:
        run(setup)
        report = handle.report()
    assert len(calls) == 3 * LOOPS
    assert report.made == len(calls) and report.made + report.skipped == STEPS * LOOPS


def test_steps_set_anew_after_the_loop_do_not_empty_the_report():
    setup = segments()
    setup.pipe.set_progress_bar_config(disable=True)
    schedule = by_hand(setup, [0, 1, 3])
    with adaptcache.attach(setup.pipe, schedule) as handle:
        run(setup, segments=1, resets=True)
        assert handle.report().computed == [0, 1, 3]


class TwoGrids(diffusers.FluxPipeline):
    """A draft in few steps, then the image: each loop has a grid of its own, as priors and decoders have."""

    def __call__(self, prompt_embeds=None, pooled_prompt_embeds=None, num_inference_steps=STEPS, generator=None,
                 output_type="latent", return_dict=True, draft=3, height=16, width=16):  # fmt: skip
        arguments = {
            "prompt_embeds": prompt_embeds, "pooled_prompt_embeds": pooled_prompt_embeds, "height": height,
            "width": width, "output_type": output_type, "return_dict": return_dict, "generator": generator,
        }  # fmt: skip
        super().__call__(**arguments, num_inference_steps=draft)
        return super().__call__(**arguments, num_inference_steps=num_inference_steps)


def two_grids():
    torch.manual_seed(0)
    pipe = TwoGrids(**flux_parts())
    pipe.set_progress_bar_config(disable=True)
    return Setup(pipe, {}, flux_prompts())


@pytest.mark.filterwarnings("ignore:.*was fitted on 6 other steps")
def test_loops_of_other_steps_in_one_call_are_counted_and_their_evidence_is_the_worst():
    setup = two_grids()
    schedule = by_hand(setup, [0, 1, 3])
    full = run(setup).images
    with counted(setup.pipe) as calls, adaptcache.attach(setup.pipe, schedule) as handle:
        image = run(setup).images
        report = handle.report()
    assert report.made == len(calls) and report.made + report.skipped == 3 + STEPS
    assert report.evidence == "extrapolated"
    assert float((image - full).square().mean() / full.var()) < 0.1


def test_a_second_loop_was_not_calibrated_and_strict_refuses_it():
    setup = segments()
    setup.pipe.set_progress_bar_config(disable=True)
    schedule = by_hand(setup, [0, 1, 3])
    with adaptcache.attach(setup.pipe, schedule, strict=True) as handle:
        run(setup, segments=1)
        assert handle.report().evidence == "calibrated"
        with pytest.raises(adaptcache.errors.ScheduleError, match="several times in one call"):
            run(setup)
        run(setup, segments=1)
        assert handle.report().computed == [0, 1, 3]


def test_each_loop_starts_fresh():
    setup = segments()
    setup.pipe.set_progress_bar_config(disable=True)
    with adaptcache.attach(setup.pipe, by_hand(setup, [0, 1, 3])):
        noise_of = torch.Generator().manual_seed(3)
        alone = [setup.pipe(**setup.prompts[0], generator=noise_of, segments=1).images for _ in range(LOOPS)]
        assert torch.equal(run(setup).images, alone[-1])


def test_the_first_loop_of_a_call_is_calibrated_on_and_the_whole_call_is_measured(setup):
    asked = {"segments": 2} if isinstance(setup.pipe, Segments) else {}
    schedule = adaptcache.calibrate(
        setup.pipe, setup.prompts[:2], STEPS, budget=0.5, pipe_kwargs={**setup.call, **asked}, progress=False,
        effort=0, eval_prompts=setup.prompts[2:],
    )  # fmt: skip
    loops = asked.get("segments", LOOPS)
    assert schedule.made["several_loops"] and schedule.evidence.calls == (3 * loops, STEPS * loops)
    with adaptcache.attach(setup.pipe, schedule) as handle, counted(setup.pipe) as calls:
        run(setup, **asked)
    report = handle.report()
    assert report.evidence == "calibrated" and report.made == len(calls) == report.skipped


def test_each_loop_of_a_call_has_a_plan_of_its_own_and_those_after_the_last_go_by_the_last():
    setup = segments()
    setup.pipe.set_progress_bar_config(disable=True)
    asked = {"pipe_kwargs": {"segments": 2}, "budget": 0.5, "progress": False}
    schedule = adaptcache.calibrate(setup.pipe, setup.prompts[:2], STEPS, **asked)
    rules = [plan.rules[0] for plan in schedule.loops]
    assert len(rules) == 2 and rules[0] == schedule.rules[0]
    assert [rule.forecast for rule in rules[:1]] != [rule.forecast for rule in rules[1:]]
    assert Schedule.model_validate_json(schedule.model_dump_json(by_alias=True, exclude_none=True)) == schedule
    swapped = schedule.model_copy(update={"loops": schedule.loops[:1]})
    made = []
    for one in (schedule, swapped):
        with adaptcache.attach(setup.pipe, one) as handle:
            made.append(run(setup, segments=3).images)
            assert handle.report().made == 3 * STEPS // 2
    assert not torch.equal(*made)


def test_calls_between_loops_are_made_and_are_no_loops_themselves():
    torch.manual_seed(0)
    setup = Setup(Cached(**flux_parts()), {}, flux_prompts())
    setup.pipe.set_progress_bar_config(disable=True)
    schedule = adaptcache.calibrate(setup.pipe, setup.prompts[:2], STEPS, budget=0.5, effort=0, progress=False)
    assert len(schedule.loops) == 2
    with adaptcache.attach(setup.pipe, schedule, strict=True) as handle, counted(setup.pipe) as calls:
        run(setup)
    assert handle.report().evidence == "calibrated" and len(calls) == 2 * (STEPS // 2 + 1)


def test_the_loops_of_a_pyramid_have_a_plan_for_each_of_their_grids():
    setup = built("HeliosPyramidPipeline")
    setup = replace(setup, call={**setup.call, "pyramid_num_inference_steps_list": [3, 4, 3]})
    schedule = adaptcache.calibrate(
        setup.pipe, setup.prompts[:1], setup.steps, budget=0.5, pipe_kwargs=setup.call, effort=0, progress=False
    )
    assert len({plan.grid.times for plan in schedule.loops}) == 3
    with counted(setup.pipe) as every:
        full = generated(setup, sample=2)
    with adaptcache.attach(setup.pipe, schedule, strict=True) as handle, counted(setup.pipe) as calls:
        made = generated(setup, sample=2)
    assert handle.report().evidence == "calibrated" and len(calls) < 0.7 * len(every)
    assert all(float((a - b).square().mean() / b.var()) < 0.1 for a, b in zip(made, full, strict=True))


def test_of_loops_on_several_grids_the_longest_is_calibrated_on():
    setup = two_grids()
    options = {"num_inference_steps": STEPS, "budget": 0.5, "progress": False}
    schedule = adaptcache.calibrate(setup.pipe, setup.prompts[:2], **options, eval_prompts=setup.prompts[2:])
    assert (
        len(schedule.grid.times) == STEPS
        and schedule.made["several_loops"]
        and schedule.evidence.calls[1] == STEPS + 3
    )
