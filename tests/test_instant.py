"""Schedules from theory: closed forms, samplers against diffusers, weights against runs, plans by brute force."""

import itertools
import time
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from flux import pipeline, run
from scipy.integrate import solve_ivp
from torch.utils._pytree import tree_leaves

import adaptcache
from adaptcache import Schedule
from adaptcache.engines.diffusers.affine import read_sampler
from adaptcache.engines.diffusers.compatibility import guidance_of
from adaptcache.errors import ScheduleError
from adaptcache.fitting.affine import SAMPLERS, AffineSampler, build_sampler, thin_levels
from adaptcache.fitting.instant import (
    SKETCH,
    build_toy,
    find_instant,
    instant,
    match,
    run_fully,
    search_plan,
    spread_steps,
)
from adaptcache.fitting.worlds import PRIOR, World, respond, wiener

CALM = World(residual=1e-9)  # nothing but what is linear
EVEN = np.linspace(1, 0, 29)


def flow_over(variance, alpha, sigma, start=(0.0, 1.0)):
    """How far the probability flow carries modes without mean, in closed form."""
    return np.sqrt(alpha**2 * variance + sigma**2) / np.sqrt(start[0] ** 2 * variance + start[1] ** 2)


# Worlds


def test_the_closed_flow_is_the_integrated_one():
    variances = np.array([1e-3, 0.1, 1.0, 30.0])

    def slope(sigma, x):
        return (x - wiener(variances, 1 - sigma, sigma) * x) / sigma

    found = solve_ivp(slope, (1.0, 0.05), np.ones(4), rtol=1e-9, atol=1e-12).y[:, -1]
    assert found == pytest.approx(flow_over(variances, 0.95, 0.05), rel=1e-6)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("dpm++2m", 2)])
def test_runs_in_a_world_converge_to_the_flow_at_the_order_of_their_sampler(name, order):
    ends, errors = (0.9, 0.2), []  # away from both ends, where orders are reached late
    for steps in (40, 80, 160):
        sampler = build_sampler(np.linspace(*ends, steps + 1), name)
        toy = build_toy(sampler, [replace(CALM, prompt=1e-9, width=5.0)])
        found = respond(replace(CALM, prompt=1e-9, width=5.0), sampler.alphas[:-1], sampler.sigmas[:-1])
        toy = replace(toy, gain=found.gain, shift=np.zeros_like(found.gain), start=np.ones(len(found.chance)))
        exact = flow_over(found.chance, 1 - ends[1], ends[1], (1 - ends[0], ends[0]))
        errors.append(np.abs(run_fully(toy)[-1] / exact - 1).max())
    assert np.log2(errors[1] / errors[2]) == pytest.approx(order, abs=0.35)


def test_the_denoiser_is_the_regression_of_the_data_on_the_latents():
    random = np.random.default_rng(0)
    data, noise = random.normal(size=200_000) * np.sqrt(0.3), random.normal(size=200_000)
    latents = 0.4 * data + 0.6 * noise
    assert data @ latents / (latents @ latents) == pytest.approx(float(wiener(np.array(0.3), 0.4, 0.6)), rel=0.02)


def test_guidance_goes_beyond_the_prompt():
    sigmas = np.array([0.9, 0.5])
    plain, guided = (respond(World(), 1 - sigmas, sigmas, scale) for scale in (1.0, 3.0))
    without = wiener(plain.chance + plain.mean, (1 - sigmas)[:, None], sigmas[:, None])
    assert guided.gain == pytest.approx(without + 3 * (plain.gain - without))
    assert (guided.size > plain.size).all() and (guided.pull > plain.pull).all()


def test_guidance_acts_in_proportion_until_it_acts_in_full():
    sigmas, slack = np.linspace(0.9, 0.1, 9), World(slack=4.0)
    assert [slack.effective(scale) for scale in (1, 2, 3, 5, 9)] == [1, 1.25, 2, 5, 9]
    found, known = respond(slack, 1 - sigmas, sigmas, 3.0), respond(World(), 1 - sigmas, sigmas, 2.0)
    for name in ("gain", "pull", "size"):
        assert getattr(found, name) == pytest.approx(getattr(known, name))


def test_residuals_have_the_kernel_they_should_and_vanish_at_both_ends():
    sigmas, world = np.linspace(0.9, 0.1, 9), World(memory=2.0)
    found = respond(world, 1 - sigmas, sigmas, variance=0.4)
    ratio = 2 * np.log((1 - sigmas + world.floor) / sigmas)
    apart = np.abs(ratio[:, None] - ratio) / 2.0
    assert found.process @ found.process.T == pytest.approx((1 + apart) * np.exp(-apart), abs=2e-6)
    assert found.share @ (found.chance + found.mean) == pytest.approx(0.4)
    size = respond(world, np.array([0.0, 0.5, 1 - 1e-5]), np.array([1.0, 0.5, 1e-5])).size
    assert size[0] == pytest.approx(0) and np.abs(size[2]).max() < 0.1 * np.abs(size[1]).max()


# Samplers


def scheduler_of(kind, steps=20, **config):
    scheduler = getattr(diffusers, kind)(**config)
    scheduler.set_timesteps(steps)
    return scheduler


FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
READ = {
    "flow Euler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow Heun": ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    "flow DPM++": ("DPMSolverMultistepScheduler", FLOW),
    "flow UniPC": ("UniPCMultistepScheduler", {**FLOW, "solver_order": 3}),
    "DDIM, clipped": ("DDIMScheduler", {**LATENT, "clip_sample": True}),
    "DDIM, v": ("DDIMScheduler", {**LATENT, "prediction_type": "v_prediction", "clip_sample": False}),
    "Euler": ("EulerDiscreteScheduler", LATENT),
    "Euler, Karras": ("EulerDiscreteScheduler", {**LATENT, "use_karras_sigmas": True}),
    "Heun": ("HeunDiscreteScheduler", LATENT),
    "DPM++": ("DPMSolverMultistepScheduler", LATENT),
    "DEIS": ("DEISMultistepScheduler", LATENT),
    "EDM": ("EDMEulerScheduler", {}),
    "EDM DPM++": ("EDMDPMSolverMultistepScheduler", {"sigma_data": 1.0, "prediction_type": "v_prediction"}),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_a_scheduler_is_read_as_it_steps(name):
    kind, config = READ[name]
    scheduler = scheduler_of(kind, **config)
    sampler = read_sampler(scheduler)
    assert scheduler.step_index is None if hasattr(scheduler, "step_index") else True
    random = torch.Generator().manual_seed(0)
    outputs = [torch.randn(1, 1, 1, 8, generator=random, dtype=torch.float64) for _ in range(len(sampler) + 1)]
    x, history = 0.05 * outputs[0], np.zeros((len(sampler) + 1, 8))
    history[0] = x.numpy().ravel()
    clips, scheduler.is_scale_input_called = config.pop("clip_sample", False), True
    for i, t in enumerate(scheduler.timesteps):
        u = 0.05 * outputs[i + 1]
        x = scheduler.step(u, t, x).prev_sample
        history[i + 1] = u.numpy().ravel()
        if not clips:
            assert sampler.maps[i] @ history == pytest.approx(x.double().numpy().ravel(), rel=1e-4, abs=1e-4)
    assert sampler.missed() < 1e-4 and np.diff(sampler.sigmas / (sampler.alphas + sampler.sigmas)).max() <= 0


class Elsewhere(torch.Tensor):
    """A tensor of another device: it takes no tensors of this one but numbers, and comes here by `cpu()`."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            if function is torch.Tensor.cpu:
                return args[0].as_subclass(torch.Tensor)
            if any(type(one) is torch.Tensor and one.ndim for one in tree_leaves((args, kwargs))):
                raise RuntimeError("Expected all tensors to be on the same device")
        return super().__torch_function__(function, types, args, kwargs)

    def __deepcopy__(self, memo):
        return self.clone()


@pytest.mark.parametrize("name", READ)
def test_a_scheduler_whose_levels_are_on_another_device_is_read_likewise(name):
    kind, config = READ[name]
    here, there = scheduler_of(kind, **config), scheduler_of(kind, **config)
    moved = {k: v.as_subclass(Elsewhere) for k, v in vars(there).items() if isinstance(v, torch.Tensor)}
    vars(there).update(moved)
    with pytest.raises(RuntimeError, match="same device"):
        there.timesteps + torch.ones(len(there.timesteps))
    assert read_sampler(there).maps == pytest.approx(read_sampler(here).maps)
    assert all(vars(there)[name] is value for name, value in moved.items())


@pytest.mark.parametrize(
    ("kind", "config", "says"),
    [
        ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, "adds noise"),
        ("EulerAncestralDiscreteScheduler", {}, "adds noise"),
        ("DDPMScheduler", {}, "adds noise"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "levels rise"),
        ("DDIMInverseScheduler", {}, "cannot be read"),
        ("DPMSolverMultistepInverseScheduler", {}, "levels rise"),
        ("KDPM2DiscreteScheduler", {}, "away from where"),
    ],
)
def test_schedulers_that_theory_does_not_know_are_refused(kind, config, says):
    with pytest.raises(ScheduleError, match=says):
        read_sampler(scheduler_of(kind, **config))


def test_a_prediction_read_as_another_kind_is_noticed():
    sampler = build_sampler(EVEN[1:])
    wrong = replace(sampler, data=build_sampler(EVEN[1:], prediction="noise").data)
    assert sampler.missed() < 1e-9 and wrong.missed() > 0.01


@pytest.mark.parametrize("name", ["euler", "dpm++2m"])
def test_samplers_made_from_noise_levels_are_those_of_diffusers(name):
    kind, config = READ["flow Euler" if name == "euler" else "flow DPM++"]
    scheduler = scheduler_of(kind, **config)
    made = build_sampler(scheduler.sigmas.double().numpy(), name)
    assert made.maps == pytest.approx(read_sampler(scheduler).maps, abs=2e-4)


def test_fewer_steps_of_a_flow_have_the_levels_and_the_order_of_their_own_run():
    shifted = [3 * s / (1 + 2 * s) for s in (np.linspace(1, 0, 29), np.linspace(1, 0, 15))]
    assert thin_levels(shifted[0], 14) == pytest.approx(shifted[1])
    for name in SAMPLERS:
        few = build_sampler(shifted[0], name).fewer(14)
        assert few.sigmas == pytest.approx(shifted[1])
        assert np.count_nonzero(np.abs(few.maps[5]) > 1e-9) >= (6 if name == "dpm++2m" else 2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sampler": "euler ancestral"}, "know the samplers"),
        ({"prediction": "score"}, "unknown prediction 'score'"),
        ({"sigmas": EVEN[::-1]}, "have to fall"),
        ({"sigmas": np.array([1.0])}, "both before each step"),
        ({"sigmas": np.array([1.0, np.nan, 0.0])}, "finite"),
        ({"alphas": np.ones(29)}, "alpha . sigma = 1"),
        ({"prediction": "noise"}, "pure noise"),
    ],
)
def test_samplers_that_make_no_sense_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        build_sampler(**{"sigmas": EVEN} | change)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("data", np.zeros((28, 2)), "says nothing of the data"),
        ("maps", np.zeros((28, 29)), "does not move"),
        ("maps", np.zeros((28, 3)), r"need shapes \(N, N \+ 1\)"),
        ("alphas", np.full(29, np.inf), "not finite"),
    ],
)
def test_maps_that_make_no_sense_are_refused(name, value, says):
    with pytest.raises(ValueError, match=says):
        replace(build_sampler(EVEN), **{name: value})


# Matching


def follow(toy, plan, rows, history):
    """Runs a toy by a table of weights, as the runtime would, and returns the errors of its end."""
    taken, past, latents = [toy.start], [], toy.start
    for i in range(len(toy.sampler)):
        if i in plan:
            past.insert(0, toy.output(i, latents))
        features = [*past[:history], latents, toy.start]
        taken.append(past[0] if not rows[i] else sum(w * f for w, f in zip(rows[i], features, strict=True)))
        latents = toy.sampler.maps[i, : i + 2] @ np.array(taken)
    return toy.errors(latents)


@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize("name", ["flow Euler", "flow UniPC", "Heun"])
def test_a_run_by_the_weights_ends_as_matching_says(name, correct):
    toy = build_toy(read_sampler(scheduler_of(READ[name][0], **READ[name][1])), sketch=4)
    plan = spread_steps(len(toy.sampler), 9, 2, 1.5)
    made = match(toy, plan, history=3, correct=correct)
    assert follow(toy, plan, made.rows, 3) == pytest.approx(made.errors, rel=1e-6)


def test_weights_land_on_the_reference_where_it_can_be_reached():
    """Two modes without residual: two features span all there is, so every skipped step lands exactly."""
    toy = build_toy(build_sampler(EVEN), [CALM])
    few = [20, 230]  # initial noise of two kinds of modes
    toy = replace(toy, gain=toy.gain[:, few], shift=np.zeros((28, 2)), start=np.ones(2), energy=np.ones(1))
    toy = replace(toy, reference=run_fully(toy))
    assert match(toy, [0, 9], ridge=0).errors[0] < 1e-15


def test_computing_everything_is_the_full_run():
    toy = build_toy(build_sampler(EVEN))
    assert match(toy, range(28), correct=False).errors.max() < 1e-20
    assert match(toy, range(28)).errors.max() < 1e-9


def test_no_other_weights_of_the_last_step_end_closer():
    toy, plan = build_toy(build_sampler(EVEN), [World()]), [0, 3, 8, 15, 22]
    made, random = match(toy, plan, ridge=0), np.random.default_rng(0)
    for _ in range(10):
        last = np.array(made.rows[-1]) + 1e-3 * random.normal(size=len(made.rows[-1]))
        assert follow(toy, plan, (*made.rows[:-1], tuple(last)), 4)[0] > made.errors[0]


def test_weights_at_computed_steps_end_closer():
    toy, plan = build_toy(build_sampler(EVEN), [World()]), [0, 2, 5, 9, 14, 20, 25]
    assert match(toy, plan, correct=True).errors[0] < match(toy, plan, correct=False).errors[0]


def test_a_sketch_is_close_to_all_coordinates():
    plan, sampler = spread_steps(28, 10, 2, 1.5), build_sampler(EVEN)
    exact, sketch = (match(build_toy(sampler, sketch=size), plan).errors for size in (None, SKETCH))
    assert 10 * np.log10(sketch / exact) == pytest.approx(np.zeros(len(PRIOR)), abs=3)


# Plans


@pytest.mark.parametrize(("steps", "calls"), [(6, 2), (8, 4), (9, 5)])
def test_the_plan_is_that_of_brute_force(steps, calls):
    toy = build_toy(build_sampler(np.linspace(1, 0, steps + 1)), sketch=4)
    found, emphasis = search_plan(toy, calls)
    heard = toy.emphasised(emphasis)
    plans = [(0, *rest) for rest in itertools.combinations(range(1, steps), calls - 1)]
    assert match(heard, found).errors.max() <= min(match(heard, plan).errors.max() for plan in plans) * 1.05


@pytest.mark.parametrize("calls", [1, 2, 9, 28])
def test_spread_steps_rise_from_the_first(calls):
    plan = spread_steps(28, calls, 3, 2)
    assert len(plan) == calls and plan[0] == 0 and plan[-1] < 28
    assert all(a < b for a, b in itertools.pairwise(plan))


def test_plans_are_dense_at_both_ends():
    gaps = np.diff(instant(build_sampler(EVEN), 14).plan)
    assert gaps[0] == gaps[1] == 1 and gaps[-1] < gaps.max()


def test_a_thousand_steps_take_seconds():
    since = time.process_time()
    made = instant(build_sampler(np.linspace(1, 0, 1001)), 100)
    assert time.process_time() - since < 20  # 1.8 s on a quiet core
    assert len(set(made.plan)) == 100 and made.plan[0] == 0 and len(made.matching.rows) == 1000


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_innovations_have_room_that_grows_as_guidance_multiplies_energies(guidance):
    made = instant(build_sampler(EVEN), 10, guidance=guidance)
    room = 2 + 2 * np.log10(guidance)
    assert [high for _, high in made.bands] == pytest.approx(made.matching.innovations.max(1) + room)


def test_where_theory_does_not_hold_it_computes_more():
    sampler = build_sampler(EVEN)
    asked = instant(sampler, 4)
    held = find_instant(sampler, 4, lead=asked.lead + 3)
    assert len(held.plan) > 4 and held.lead >= asked.lead + 3
    assert find_instant(sampler, 14, lead=0).plan == instant(sampler, 14).plan
    assert len(find_instant(sampler, 20, lead=1e9).plan) == 28


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"calls": 29}, r"calls must be in \[1, 28\]"),
        ({"guidance": -1.0}, "guidance"),
        ({"variance": 0.0}, "variance"),
        ({"plan": (1, 2, 3)}, "a plan of 3 calls"),
        ({"plan": (0, 5, 28)}, "a plan of 3 calls"),
    ],
)
def test_what_cannot_be_planned_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        instant(build_sampler(EVEN), **{"calls": 3} | change)


@pytest.mark.parametrize("name", ["width", "prompt", "residual", "memory", "floor"])
def test_worlds_that_cannot_be_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} has to be above 0"):
        World(**{name: 0.0})


# Schedules


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAPTCACHE_HOME", str(tmp_path))
    return tmp_path


def test_an_instant_schedule_is_a_file_like_any_other(tmp_path):
    made = Schedule.instant(EVEN[:-1], 2)
    assert made.from_theory and "from theory, not measured on this model" in repr(made)
    assert len(made.plans[0]) == 14 and made.rules[0].guarded
    read = Schedule.load(made.save(tmp_path / "x.json"))
    assert read.plans == made.plans and read.from_theory


def test_plan_and_weights_are_the_same_every_time():
    assert Schedule.instant(EVEN[:-1], 2.8) == Schedule.instant(EVEN[:-1], 2.8)


def test_speeds_at_which_theory_does_not_hold_are_lowered_and_said():
    with pytest.warns(UserWarning, match="at 14x would make 2 denoiser calls.* it makes [0-9]+ "):
        made = Schedule.instant(EVEN[:-1], 14)
    assert len(made.plans[0]) >= 8
    with pytest.warns(UserWarning, match="it makes 4 "):  # a distilled model: nothing to skip
        assert Schedule.instant(np.linspace(1, 0.25, 4), 2).plans == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("times", "options", "says"),
    [
        (EVEN[:-1], {"speed": 0.5}, "speed is how many times"),
        (EVEN[:-1], {"speed": float("nan")}, "speed is how many times"),
        (EVEN[:-1], {"speed": 2, "sampler": "heun"}, "by noise levels alone"),
        (EVEN[:-1][::-1], {"speed": 2}, "have to fall"),
        (EVEN, {"speed": 2}, "without the 0 at the end"),
        ([], {"speed": 2}, "one or more"),
        (EVEN, {"speed": 2, "sampler": build_sampler(EVEN)}, "29 times do not fit a sampler of 28"),
    ],
)
def test_instant_schedules_that_make_no_sense_are_refused(times, options, says):
    with pytest.raises(ValueError, match=says):
        Schedule.instant(times, **options)


def test_numbers_may_be_of_numpy():
    made = Schedule.instant(np.linspace(1, 0.1, 10), np.int64(1), guidance=np.float32(1))
    assert made.steps(times=np.linspace(1, 0.2, 5)) == [0, 1, 2, 3, 4]


def test_that_the_speed_is_less_than_asked_for_is_said_of_a_kept_schedule_too():
    pipe = pipeline()
    for _ in range(2):
        with adaptcache.attach(pipe, speed=2), pytest.warns(UserWarning, match="at 2x would make 4 .* it makes 8 "):
            run(pipe, 8)


def test_attach_takes_a_speed_instead_of_a_schedule(own_cache):
    pipe = pipeline()
    with adaptcache.attach(pipe, speed=2) as handle:
        for steps in (28, 20, 28):
            run(pipe, steps)
            done = handle.report()
            assert done.evidence == "theory" and len(done.calls) == steps
            assert len(done.computed) == steps // 2
    assert "14 denoiser calls made, 14 skipped (theory)" in str(done)
    assert len(list((own_cache / "instant").iterdir())) == 2
    assert handle.schedule.from_theory and len(handle.schedule.grid.times) == 28
    again = handle.schedule.save(own_cache / "x.json")
    with adaptcache.attach(pipe, again) as handle:
        run(pipe, 28)
        assert handle.report().evidence == "theory"


def test_a_broken_file_of_the_cache_is_made_again(own_cache):
    pipe, made = pipeline(), []
    for _ in range(2):
        with adaptcache.attach(pipe, speed=2) as handle:
            run(pipe, 20)
            made.append(handle.schedule)
        [file] = (own_cache / "instant").iterdir()
        file.write_text("{")
    assert made[0] == made[1] and made[0].made["guidance"] == 3.5


def test_guidance_is_what_the_call_mixes_or_a_distilled_model_is_given():
    pipe = pipeline()  # its scale is an input of the denoiser
    assert guidance_of(pipe, {}) == 3.5 and guidance_of(pipe, {"guidance_scale": 0.0}) == 1
    pipe.transformer.register_to_config(guidance_embeds=False)
    assert guidance_of(pipe, {"guidance_scale": 5.0}) == 1
    assert guidance_of(pipe, {"true_cfg_scale": 4.0}) == 1
    assert guidance_of(pipe, {"true_cfg_scale": 4.0, "negative_prompt": "blurred"}) == 4


def test_a_sampler_that_adds_noise_is_refused_before_anything_is_skipped():
    pipe = pipeline()
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    with adaptcache.attach(pipe, speed=2), pytest.raises(ScheduleError, match="adds noise"):
        run(pipe, 12)


@pytest.mark.parametrize("options", [{}, {"schedule": "x.json", "speed": 2}, {"speed": 2, "gear": 1}])
def test_attach_needs_a_schedule_or_a_speed(options):
    with pytest.raises(TypeError, match=r"attach takes|one gear"):
        adaptcache.attach(pipeline(), **options)


def test_maps_of_any_sampler_will_do():
    known = build_sampler(EVEN)
    assert (
        instant(AffineSampler(known.alphas, known.sigmas, known.data, known.maps), 10).plan == instant(known, 10).plan
    )
