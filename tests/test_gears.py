"""Gears: chosen per prompt, bit for bit what each gear does alone, one number read a computed step."""

import itertools
import json

import numpy as np
import pytest
import torch
import toy

import adaptcache
from adaptcache.calibration.gears import Trials, choose_gears, least_margin
from adaptcache.cli.files import read_budgets
from adaptcache.cli.show import describe
from adaptcache.errors import ScheduleError
from adaptcache.evaluation.certify import QualityTarget
from adaptcache.fitting.signals import measure_signals, signal_rows
from adaptcache.policies.gears import Gears
from adaptcache.policies.plan import Plan
from adaptcache.policies.signals import compute_signals
from adaptcache.schedule.schedule import Schedule
from tests.calls import Call

STEPS = 12
BUDGETS = (0.34, 0.5, 0.67, 0.84)
FIT = ["x" * (1 + 7 * k % 31) for k in range(16)]
HELD_OUT = ["y" * (1 + 5 * k % 31) for k in range(16)]


def calibrated(target, **options):
    return adaptcache.calibrate(
        toy.Pipe(), FIT, num_inference_steps=STEPS, gears=BUDGETS, min_psnr=target, batch_size=8, **options
    )


@pytest.fixture(scope="module")
def schedule():
    """With a target that half of the prompts reach in the fastest gear."""
    return calibrated(60.5, eval_prompts=HELD_OUT)


def run(pipe, prompt, number=0):
    return Call(STEPS)(pipe, [prompt], number)


def taken(schedule, **options):
    """Runs all held-out prompts one by one: gears and latents."""
    pipe, gears, ends = toy.Pipe(), [], []
    with adaptcache.attach(pipe, schedule, **options) as handle:
        for number, prompt in enumerate(HELD_OUT):
            ends.append(run(pipe, prompt, number))
            gears.append(handle.gear)
    return gears, ends


def test_gears_share_their_first_computed_steps(schedule):
    policy = schedule.rules[0].policy
    plans = [policy.steps(schedule.grid.times, gear) for gear in range(len(BUDGETS))]
    assert len({tuple(plan[:3]) for plan in plans}) == 1
    assert [len(plan) for plan in plans] == [4, 6, 8, 10]


def test_a_gear_chosen_for_a_prompt_is_that_gear_bit_for_bit(schedule):
    gears, ends = taken(schedule)
    assert len(set(gears)) > 1, "all prompts took one gear: this shows nothing"
    for number, (gear, end) in enumerate(zip(gears, ends, strict=True)):
        pipe = toy.Pipe()
        with adaptcache.attach(pipe, schedule, gear=gear) as handle:
            assert torch.equal(run(pipe, HELD_OUT[number], number), end)
            assert handle.report().gear == gear and not handle.report().why


def test_the_report_says_which_gear_and_why(schedule):
    pipe = toy.Pipe()
    with adaptcache.attach(pipe, schedule) as handle:
        run(pipe, HELD_OUT[0])
        report = handle.report()
    assert report.gear == handle.gear and len(report.computed) == [4, 6, 8, 10][report.gear]
    assert f"gear {report.gear} promised" in report.why and report.why in str(report)


def test_the_worst_prompt_of_a_batch_decides_for_it(schedule):
    gears, _ = taken(schedule)
    low, high = gears.index(min(gears)), gears.index(max(gears))
    pipe = toy.Pipe()
    noise = [torch.Generator().manual_seed(k) for k in (low, high)]
    with adaptcache.attach(pipe, schedule) as handle:
        pipe([HELD_OUT[low], HELD_OUT[high]], STEPS, generator=noise)
        assert handle.gear >= max(gears)


def test_choosing_on_arrays_is_choosing_in_runs(schedule):
    gears, _ = taken(schedule)
    policy, times = schedule.rules[0].policy, schedule.grid.times
    plans = [policy.steps(times, gear) for gear in range(len(BUDGETS))]
    seen = []
    for gear, signals in enumerate(policy.signal_specs):
        rows = []
        for number, prompt in enumerate(HELD_OUT):
            outputs = outputs_of(schedule, gear, prompt, number)
            rows.append([compute_signals(k.rows, outputs[i + 1 :: -1])[0].numpy() for i, k in enumerate(signals)])
        seen.append([np.stack(column) for column in zip(*rows, strict=True)])
    predicted = Trials(np.zeros((len(plans), len(HELD_OUT))), seen).predicted(policy)
    assert choose_gears(plans, predicted, policy.target + policy.margin).tolist() == gears


def outputs_of(schedule, gear, prompt, number):
    """The outputs at the computed steps of one gear."""
    pipe, outputs = toy.Pipe(), []
    forward = pipe.transformer.forward
    pipe.transformer.forward = lambda *a, **k: (outputs.append(forward(*a, **k)[0]), (outputs[-1],))[1]
    with adaptcache.attach(pipe, schedule, gear=gear):
        run(pipe, prompt, number)
    return outputs


@pytest.fixture
def reads(monkeypatch):
    """Counts numbers that are read from tensors, wherever they are."""
    made = []
    for name in ("item", "__float__", "__int__", "__bool__", "__index__", "tolist", "numpy"):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, name=name, original=original, **kwargs):
            made.append(name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    return made


@pytest.mark.parametrize("options", [{}, {"guard": True}, {"gear": 1, "guard": True}])
def test_one_number_is_read_for_a_computed_step_at_most(schedule, options, reads):
    pipe = toy.Pipe()
    with adaptcache.attach(pipe, schedule, gear=2):
        reads.clear()
        run(pipe, HELD_OUT[0])
        alone = len(reads)  # what the scheduler and the pipeline read
    with adaptcache.attach(pipe, schedule, **options) as handle:
        reads.clear()
        run(pipe, HELD_OUT[0])
        assert 1 <= len(reads) - alone <= len(handle.report().computed)


@pytest.mark.filterwarnings("ignore:.*planned anew")
def test_a_static_plan_reads_nothing_at_any_step(schedule, reads):
    """What a run begins with is read, and that is as much for twice the steps."""
    made = []
    for steps in (STEPS, 2 * STEPS):
        pipe = toy.Pipe()
        reads.clear()
        toy.run(pipe, steps)
        alone = len(reads)
        with adaptcache.attach(pipe, schedule, gear=0):
            toy.run(pipe, steps)  # plans a grid that is new
            reads.clear()
            toy.run(pipe, steps)
        made.append(len(reads) - alone)
    assert made[0] == made[1] <= 6  # the grid, the times of the first two denoiser calls, and a few weights


def test_a_guard_is_silent_on_what_calibration_knows(schedule):
    plain, guarded = taken(schedule), taken(schedule, guard=True)
    assert sum(a == b for a, b in zip(plain[0], guarded[0], strict=True)) >= 15


@pytest.mark.parametrize("gear", [None, 0, 3])
@pytest.mark.filterwarnings("ignore:.*other weights")
def test_a_guard_shifts_runs_of_other_weights_to_safety(schedule, gear):
    pipe = toy.Pipe()
    with torch.no_grad():
        pipe.transformer.time.weight *= 12  # the outputs change much faster with time
    full = run(pipe, HELD_OUT[0])
    with adaptcache.attach(pipe, schedule, gear=gear) as handle:
        error = (run(pipe, HELD_OUT[0]) - full).norm()
        assert "guard" not in handle.report().why
        made = handle.report().made
    with adaptcache.attach(pipe, schedule, gear=gear, guard=True) as handle:
        guarded = (run(pipe, HELD_OUT[0]) - full).norm()
        report = handle.report()
    assert "the guard saw an unknown change at step" in report.why
    assert report.made > made and guarded < error


def test_a_single_plan_has_a_guard_too():
    fitted = adaptcache.calibrate(toy.Pipe(), FIT, num_inference_steps=STEPS, budget=0.34, batch_size=8)
    pipe = toy.Pipe()
    with adaptcache.attach(pipe, fitted) as handle:
        plain = run(pipe, HELD_OUT[1])
    with adaptcache.attach(pipe, fitted, guard=True) as handle:
        assert torch.equal(run(pipe, HELD_OUT[1]), plain)
        for prompt in FIT + HELD_OUT:
            run(pipe, prompt)
            assert not handle.report().why  # bands are those of runs by this plan, not of full ones
    bare = fitted.model_copy(update={"rules": (without_watch(fitted.rules[0]),)})
    with pytest.raises(ScheduleError, match="nothing for the guard to look at"):
        adaptcache.attach(pipe, bare, guard=True)


def without_watch(rule):
    return rule.model_copy(update={"policy": rule.policy.model_copy(update={"signal_specs": None})})


def test_gears_survive_json_and_run_the_same(schedule, tmp_path):
    loaded = Schedule.load(schedule.save(tmp_path / "s.json"))
    assert type(loaded.rules[0].policy) is Gears
    assert Schedule.load(loaded.save(tmp_path / "t.json")) == loaded
    assert taken(loaded)[0] == taken(schedule)[0]


def test_another_grid_runs_in_the_slowest_gear(schedule):
    pipe = toy.Pipe()
    with adaptcache.attach(pipe, schedule) as handle, pytest.warns(UserWarning, match="planned anew"):
        toy.run(pipe, 24)
        assert len(handle.report().computed) == 20 and handle.report().evidence == "extrapolated"


def test_a_gear_may_be_set_between_runs_and_left_to_the_schedule_again(schedule):
    gears, ends = taken(schedule)
    pipe = toy.Pipe()
    with adaptcache.attach(pipe, schedule) as handle:
        handle.gear = -1
        run(pipe, HELD_OUT[0])
        assert handle.gear == 3
        handle.gear = None
        assert torch.equal(run(pipe, HELD_OUT[0]), ends[0]) and handle.gear == gears[0]
        with pytest.raises(LookupError, match="no gear 7"):
            handle.gear = 7


def test_show_says_how_a_gear_is_chosen_and_how_good_the_guesses_are(schedule, capsys):
    describe(schedule)
    shown = " ".join(capsys.readouterr().out.split())
    assert "the cheapest gear whose guess reaches 60.5 dB" in shown and "guesses, held-out R2 gear 0:" in shown


def test_the_command_line_takes_budgets_separated_by_commas():
    assert read_budgets("--gears", "0.18, 0.25,0.5") == [0.18, 0.25, 0.5]
    with pytest.raises(ValueError, match=r"--gears takes budgets such as .* got '0.2;0.3'"):
        read_budgets("--gears", "0.2;0.3")


def test_each_gear_can_be_exported(schedule):
    plans = [schedule.steps(gear) for gear in range(len(BUDGETS))]
    assert [len(plan) for plan in plans] == [4, 6, 8, 10]


def test_signals_of_runs_are_those_of_their_inner_products():
    vectors = torch.randn(5, 3, 40, generator=torch.Generator().manual_seed(0)).cumsum(0).double()
    grams = torch.einsum("ipd,jpd->pij", vectors, vectors).numpy()
    plan = [0, 2, 3, 4]
    rows = signal_rows(grams.mean(0), plan)
    closed = measure_signals(grams, plan, rows)
    for number, row in enumerate(rows, start=1):
        outputs = [vectors[step] for step in reversed(plan[: number + 1])]
        assert compute_signals(row, outputs).numpy() == pytest.approx(closed[number - 1], abs=1e-4)


def test_the_least_margin_is_the_least_that_keeps_the_share():
    rng = np.random.default_rng(0)
    ends = np.stack([rng.normal(40, 4, 200), np.full(200, 60.0)])
    guess = ends[0] + rng.normal(0, 2, 200)
    predicted = {(0, 0): guess, (0, 1): guess, (1, 0): ends[1], (1, 1): ends[1]}
    plans = [[0, 1, 2, 6], [0, 1, 2, 4, 8]]
    margin = least_margin(plans, predicted, ends, QualityTarget(38.0, 0.05))

    def share(margin):
        gears = choose_gears(plans, predicted, 38.0 + margin)
        return float((ends[gears, np.arange(200)] < 38).mean())

    assert share(margin) <= 0.05 < share(margin - 0.25)


def test_certified_gears_say_so_and_what_fails_computes_everything():
    options = {"eval_prompts": HELD_OUT, "certify": True, "max_failure_rate": 0.2, "confidence": 0.9}
    good = calibrated(20.0, **options)
    assert good.evidence.certificate.certified is not None and good.evidence.verdict is None
    assert good.evidence.speed > 1 and type(good.rules[0].policy) is Gears
    bad = calibrated(101.0, **options)
    assert bad.evidence.calls == (STEPS, STEPS) and type(bad.rules[0].policy) is Plan
    assert bad.evidence.verdict.startswith("Do not cache") and "16 of 16" in bad.evidence.verdict
    pipe = toy.Pipe()
    full = run(pipe, "a")
    with adaptcache.attach(pipe, bad):
        assert torch.equal(run(pipe, "a"), full)


def test_a_single_plan_is_certified_or_refused():
    options = {"num_inference_steps": STEPS, "budget": 0.67, "eval_prompts": HELD_OUT, "batch_size": 8}
    options |= {"certify": True, "max_failure_rate": 0.2, "confidence": 0.9}
    good = adaptcache.calibrate(toy.Pipe(), FIT, min_psnr=10.0, **options)
    assert good.evidence.certificate.setting == "8 of 12 calls" and len(good.rules[0].policy.gears) == 1
    few = {**options, "num_inference_steps": 4, "budget": 0.5}
    bad = adaptcache.calibrate(toy.Pipe(), FIT, min_psnr=99.0, **few)
    assert "With 4 steps every one is large" in bad.evidence.verdict
    assert len(bad.rules[0].policy.gears[0].compute) == 4


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"gears": [0.5, 0.7], "min_psnr": 40.0, "prompts": FIT[:1]}, "give 2 calibration prompts or more"),
        ({"gears": [0.5, 0.7]}, "need a target: min_psnr"),
        ({"budget": 0.5, "certify": True}, "need a target: min_psnr"),
        ({"budget": 0.5, "min_psnr": 40.0}, "needs something that can meet it"),
        ({"gears": [0.5, 0.7], "min_psnr": 40.0, "budget": 0.5}, "not two of them"),
        ({"gears": [0.5, 1.7], "min_psnr": 40.0}, r"must be in \(0, 1\], got 1.7"),
        ({"gears": [0.5, 0.51], "min_psnr": 40.0}, "two budgets or more that differ"),
        ({"gears": [0.05, 0.5], "min_psnr": 40.0}, "shows nothing of a prompt"),
        ({"gears": [0.5, 0.7], "min_psnr": 40.0, "reference_steps": 24}, "leave reference_steps"),
        ({"gears": [0.5, 0.7], "min_psnr": float("nan")}, "number of decibels, got nan"),
        ({"gears": [0.5, 0.7], "min_psnr": 40.0, "certify": True}, "0 held-out prompts cannot show"),
        (
            {"budget": 0.5, "min_psnr": 40.0, "certify": True, "eval_prompts": HELD_OUT},
            "16 held-out.*59 are the least",
        ),
    ],
)
def test_bad_wishes_cost_no_profile(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        adaptcache.calibrate(toy.Pipe(), num_inference_steps=STEPS, **{"prompts": FIT, **options})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda p: p["watch"].pop(), "one look for each computed step"),
        (lambda p: p["watch"][0].append(p["watch"][0][0]), "one look for each computed step"),
        (lambda p: p["gears"][0].update(budget=0.99), "have to rise"),
        (lambda p: p.update(start=9), "no gear 9 to start in"),
        (lambda p: first_guess(p)["linear"].append(1.0), "do not agree in length"),
        (lambda p: first_guess(p).update(scale=[0.0]), "greater than 0"),
        (lambda p: p["watch"][0][0].update(rows=[]), "at least 1 item"),
        (lambda p: p["watch"][0][0].update(rows=[[1.0, 1.0, 1.0]]), "more outputs than are computed by then"),
    ],
)
def test_gears_from_strangers_are_parsed_strictly(schedule, change, complaint, tmp_path):
    data = json.loads(schedule.save(tmp_path / "s.json").read_text())
    change(data["rules"][0]["policy"])
    (tmp_path / "s.json").write_text(json.dumps(data))
    with pytest.raises(ScheduleError, match=complaint):
        Schedule.load(tmp_path / "s.json")


def first_guess(policy):
    return next(look["guess"] for look in itertools.chain(*policy["watch"]) if "guess" in look)
