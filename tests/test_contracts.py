"""What every policy and every forecast promises. A new method is tested by being listed."""

import functools
import itertools

import pytest
import torch
import toy

import adaptcache
from adaptcache.errors import ScheduleError
from adaptcache.forecasts import FORECASTS
from adaptcache.forecasts.base import Known
from adaptcache.policies import POLICIES, StaticPolicy
from adaptcache.policies.replay import replay
from adaptcache.schedule.format import Denoiser, Grid
from adaptcache.schedule.rule import Rule
from adaptcache.schedule.schedule import Schedule
from adaptcache.step import Step

STEPS = 12
PROFILE = toy.profile(STEPS)
TIMES = tuple(map(float, PROFILE.times))
PASTS = [(0,), (1, 0), (3, 1, 0), (5, 4, 2, 1, 0), (8, 6, 4, 2, 0), (9, 8, 7, 6, 5, 4, 3, 2, 1, 0)]


@functools.cache
def policy_of(name, budget=0.5):
    return POLICIES[name].fit(PROFILE, budget=budget)


@functools.cache
def forecast_of(name, plan):
    return FORECASTS[name].fit(PROFILE, plan)


def schedule_of(policy="uniform", forecast="extrapolate"):
    policy = policy_of(policy) if isinstance(policy, str) else policy
    if forecast == "matched":
        policy = policy_of("plan")
    plan = replay(policy, PROFILE)
    # Half of what is computed must not matter to a schedule: the site `step` has no residuals.
    policy = policy.model_copy(update={"on": "input"}) if getattr(policy, "on", None) else policy
    return Schedule(
        name="contract",
        denoiser=Denoiser(class_name="Denoiser"),
        grid=Grid(scheduler="FlowMatchEulerDiscreteScheduler", times=TIMES),
        rules=(Rule(policy=policy, forecast=forecast_of(forecast, tuple(plan))),),
    )


def computed(schedule, **pipe):
    made = toy.Pipe(**pipe)
    with adaptcache.attach(made, schedule) as handle:
        toy.run(made, STEPS)
        first = handle.report().computed
        toy.run(made, STEPS)
        assert handle.report().computed == first  # nothing stays from one run to the next
    return first


every_policy = pytest.mark.parametrize("name", POLICIES)
every_forecast = pytest.mark.parametrize("name", FORECASTS)


@every_policy
def test_a_policy_survives_json(name, tmp_path):
    schedule = schedule_of(name)
    loaded = Schedule.load(schedule.save(tmp_path / "schedule.json"))
    again = Schedule.load(loaded.save(tmp_path / "again.json"))
    assert again == loaded and type(loaded.rules[0].policy) is POLICIES[name]
    assert replay(loaded.rules[0].policy, PROFILE) == replay(schedule.rules[0].policy, PROFILE)


@every_policy
@pytest.mark.parametrize("branches", [1, 2, 3])
def test_a_policy_runs_with_any_number_of_branches_and_starts_every_run_afresh(name, branches):
    steps = computed(schedule_of(name), branches=branches)
    assert steps[0] == 0 and 1 <= len(steps) < STEPS


@every_policy
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_policy_runs_in_half_precision(name, dtype):
    assert computed(schedule_of(name), dtype=dtype)[0] == 0


@every_policy
def test_a_policy_can_compute_everything(name):
    assert replay(policy_of(name, budget=1), PROFILE) == list(range(STEPS))


@every_policy
def test_a_policy_spends_its_budget(name):
    spent = [len(replay(policy_of(name, budget), PROFILE)) for budget in (0.25, 0.5, 0.8)]
    assert spent == sorted(spent) and abs(spent[1] - 6) <= 3, spent


@pytest.mark.parametrize("name", [name for name, kind in POLICIES.items() if kind.static])
@pytest.mark.parametrize("steps", [1, 2, 9, STEPS, 31])
def test_a_static_policy_knows_its_steps_beforehand(name, steps):
    times = tuple(1 - i / steps for i in range(steps))
    found = policy_of(name).steps(times)
    assert found == sorted(set(found)) and set(found) <= set(range(steps))
    rule = Rule(policy=policy_of(name), forecast=FORECASTS["extrapolate"]())
    state, made = rule.policy.init(times), [0]
    for index in range(1, steps):
        if rule.computes(state, Step(index, times, tuple(reversed(made)))):
            made.append(index)
    assert rule.steps(times) == made


def test_seven_policies_are_static():
    static = {name for name, kind in POLICIES.items() if kind.static}
    assert static == {"growing", "local-error", "magnitude", "mask", "plan", "table", "uniform"}
    assert all(issubclass(POLICIES[name], StaticPolicy) for name in static)


@every_policy
def test_a_policy_does_not_read_the_future(name):
    policy, generator = policy_of(name), torch.Generator().manual_seed(0)
    values = torch.randn(STEPS, 1, 4, 3, generator=generator).cumsum(0) * 0.1 + 1
    other = values.clone()
    other[7:] += 100

    def decisions(xs):
        state, past, made = policy.init(TIMES), (), []
        for index in range(STEPS):
            step = Step(index, TIMES, past, x=xs[index])
            made.append(index == 0 or policy.compute(state, step))
            if made[-1]:
                policy.observe(state, step, 2 * xs[index])
                past = (index, *past)
        return made

    assert decisions(values)[:7] == decisions(other)[:7]
    assert decisions(values) == decisions(values)


@every_policy
def test_the_worst_sample_of_a_batch_decides(name):
    policy, calm = policy_of(name), torch.ones(1, 4, 3)
    if policy.signal == "none":
        pytest.skip("looks at nothing")
    wild = torch.randn(STEPS, 1, 4, 3, generator=torch.Generator().manual_seed(1)) * 5

    def decisions(batches):
        state, past, made = policy.init(TIMES), (), []
        for index, x in enumerate(batches):
            step = Step(index, TIMES, past, x=x)
            made.append(index == 0 or policy.compute(state, step))
            if made[-1]:
                policy.observe(state, step, x)
                past = (index, *past)
        return made

    alone = decisions([wild[i] for i in range(STEPS)])
    assert decisions([torch.cat([calm, wild[i]]) for i in range(STEPS)]) == alone


@every_forecast
def test_a_forecast_survives_json(name, tmp_path):
    schedule = schedule_of(forecast=name)
    loaded = Schedule.load(schedule.save(tmp_path / "schedule.json"))
    assert type(loaded.rules[0].forecast) is FORECASTS[name]
    assert Schedule.load(loaded.save(tmp_path / "again.json")) == loaded


def contexts(name):
    """Yields forecasts with steps they may be asked about."""
    for past in PASTS:
        for index in range(past[0] + 1, min(past[0] + 4, STEPS)):
            yield forecast_of(name, tuple(sorted(past))), Step(index, TIMES, past)


@every_forecast
def test_a_forecast_needs_no_more_history_than_it_declares(name):
    for forecast, step in contexts(name):
        weights = forecast.weights(step)
        assert 1 <= len(weights.past) <= min(forecast.depth, len(step.past))
        assert len(weights.past_x) in (0, len(weights.past)) and (forecast.keeps_latents or not weights.past_x)
        short = Step(step.index, TIMES, step.past[: forecast.depth])
        assert forecast.weights(short) == weights


@every_forecast
def test_a_forecast_of_equal_outputs_is_finite_and_of_their_kind(name):
    for (forecast, step), dtype in itertools.product(contexts(name), [torch.float16, torch.bfloat16]):
        past = [torch.ones(2, 4, 3, dtype=dtype)] * min(len(step.past), forecast.depth)
        known = Known(past, past[0], past[0], past, past[0], past)
        made = forecast.combine(known, step)
        assert made.dtype == dtype and made.shape == (2, 4, 3) and made.isfinite().all()


@every_forecast
def test_a_forecast_is_deterministic_and_leaves_the_history_alone(name):
    for forecast, step in contexts(name):
        past = [torch.randn(2, 4, 3) for _ in range(min(len(step.past), forecast.depth))]
        kept = [value.clone() for value in past]
        known = Known(past, past[0], past[-1], past, past[0], past)
        assert torch.equal(forecast.combine(known, step), forecast.combine(known, step))
        assert all(map(torch.equal, past, kept))


@every_forecast
@pytest.mark.parametrize("branches", [1, 2, 3])
def test_a_forecast_runs_and_starts_every_run_afresh(name, branches):
    schedule, pipe = schedule_of(forecast=name), toy.Pipe(branches)
    with adaptcache.attach(pipe, schedule):
        first = toy.run(pipe, STEPS)
        assert torch.equal(toy.run(pipe, STEPS), first) and first.isfinite().all()


@every_forecast
def test_a_forecast_that_is_never_used_changes_nothing(name):
    pipe = toy.Pipe()
    full = toy.run(pipe, STEPS)
    policy = POLICIES["uniform"](interval=1)
    if name == "matched":
        policy = POLICIES["plan"].of(list(range(STEPS)), TIMES)
    forecast = forecast_of(name, tuple(range(STEPS)))
    rule = Rule(policy=policy, forecast=forecast)
    with adaptcache.attach(pipe, schedule_of().model_copy(update={"rules": (rule,)})):
        assert torch.equal(toy.run(pipe, STEPS), full)


def test_the_site_step_has_no_residuals():
    rule = dict(policy=POLICIES["probe"](threshold=0.1), forecast=FORECASTS["extrapolate"]())
    with pytest.raises(ValueError, match="blocks"):
        Rule(site="step", **rule)
    assert issubclass(ScheduleError, ValueError)
