"""A second denoiser for the unconditional branch, a second scheduler for the sound: both are components."""

import copy

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import adaptcache
from adaptcache.engines.diffusers.grid import times_of
from adaptcache.engines.diffusers.identity import fingerprint
from adaptcache.forecasts.extrapolate import Extrapolate
from adaptcache.policies.plan import Plan
from adaptcache.schedule.format import Grid
from adaptcache.schedule.rule import Rule
from adaptcache.schedule.schedule import Schedule
from tests.toy import Denoiser, Pipe

STEPS, PLAN = 8, [0, 1, 3, 5]


class TwoDenoisers(Pipe):
    """Guides with a denoiser of its own for the branch without a prompt, as Ideogram 4 does."""

    def __init__(self):
        super().__init__()
        self.unconditional_transformer = copy.deepcopy(self.transformer)
        for weights in self.unconditional_transformer.parameters():
            weights.data *= 0.9

    @property
    def components(self):
        return super().components | {"unconditional_transformer": self.unconditional_transformer}

    @torch.no_grad()
    def __call__(self, prompt="", num_inference_steps=STEPS, generator=None, output_type="latent"):
        x = torch.randn(1, 9, 6, generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            time, condition = (t / 1000).expand(1), torch.full((1, 1, 1), 0.5)
            with_prompt = self.transformer(x, time, condition)[0]
            without = self.unconditional_transformer(x, time, 0 * condition)[0]
            x = self.scheduler.step(without + 3 * (with_prompt - without), t, x, return_dict=False)[0]
        return x


class Both(Denoiser):
    """Returns the same for pictures and for sound."""

    def forward(self, hidden_states, timestep, condition):
        (u,) = super().forward(hidden_states, timestep, condition)
        return u, u.clone()


class TwoSchedulers(Pipe):
    """Steps its sound with a scheduler that is a component, as MiniMax H3 does."""

    def __init__(self):
        super().__init__()
        self.transformer, self.audio_scheduler = Both(), FlowMatchEulerDiscreteScheduler()

    @property
    def components(self):
        return super().components | {"audio_scheduler": self.audio_scheduler}

    @torch.no_grad()
    def __call__(self, prompt="", num_inference_steps=STEPS, generator=None, output_type="latent"):
        video = torch.randn(1, 9, 6, generator=generator)
        audio = video.clone()
        self.scheduler.set_timesteps(num_inference_steps)
        self.audio_scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            u, v = self.transformer(video, (t / 1000).expand(1), torch.full((1, 1, 1), 0.5))
            video = self.scheduler.step(u, t, video, return_dict=False)[0]
            audio = self.audio_scheduler.step(v, t, audio, return_dict=False)[0]
        return video, audio


def by_hand(pipe, steps):
    pipe.scheduler.set_timesteps(STEPS)
    times = times_of(pipe.scheduler)
    grid = Grid(scheduler="FlowMatchEulerDiscreteScheduler", times=times)
    rule = Rule(policy=Plan.of(steps, times), forecast=Extrapolate(order=1))
    return Schedule(name="by hand", denoiser=fingerprint(pipe), grid=grid, rules=(rule,))


def run(pipe):
    return pipe(generator=torch.Generator().manual_seed(0))


@pytest.fixture
def two():
    """A pipeline with two denoisers, and the forwards of each as they happen."""
    pipe, forwards = TwoDenoisers(), []
    for name in ("transformer", "unconditional_transformer"):
        part = getattr(pipe, name)
        part.register_forward_hook(lambda *_, name=name: forwards.append(name))
    return pipe, forwards


def test_a_skipped_step_calls_neither_denoiser(two):
    pipe, forwards = two
    with adaptcache.attach(pipe, by_hand(pipe, PLAN)):
        run(pipe)
    assert forwards.count("transformer") == forwards.count("unconditional_transformer") == len(PLAN)


@pytest.mark.parametrize("plan", [PLAN, range(STEPS)], ids=["half of the steps", "all steps"])
def test_the_report_counts_the_forwards_of_both_denoisers(two, plan):
    pipe, forwards = two
    with adaptcache.attach(pipe, by_hand(pipe, plan)) as handle:
        run(pipe)
    report = handle.report()
    assert report.made == len(forwards) and report.made + report.skipped == 2 * STEPS


def test_other_weights_of_the_second_denoiser_make_another_fingerprint(two):
    pipe, _ = two
    before = fingerprint(pipe)
    pipe.unconditional_transformer.inner.weight.data += 1
    assert fingerprint(pipe) != before


def test_what_a_second_scheduler_steps_is_forecast_as_well():
    pipe = TwoSchedulers()
    with adaptcache.attach(pipe, by_hand(pipe, PLAN)) as handle:
        video, audio = run(pipe)
        assert handle.report().computed == PLAN
    assert torch.equal(audio, video)  # they start alike, and the denoiser says the same of both
