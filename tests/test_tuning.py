"""Tuning: never worse than calibrating, nothing lost, nothing counted twice."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CALL, STEPS, embedded, tiny_flux
from toy import Pipe

import adaptcache
from adaptcache.cache import Cache
from adaptcache.calibration.fit import fit_schedule
from adaptcache.engines import make_setup
from adaptcache.evaluation.generate import generate
from adaptcache.evaluation.metrics import psnr
from adaptcache.fitting.plan import move_call, plan_cost
from adaptcache.profiling.measure import measure
from adaptcache.runs import PromptSet
from adaptcache.schedule.schedule import Schedule
from adaptcache.tuning import Tuned
from adaptcache.tuning import study as studies
from adaptcache.tuning.evaluator import SPACE, Candidate, leaders
from adaptcache.tuning.front import conclude, gain
from adaptcache.tuning.study import Journal, MoveSampler, Search, live_trials, open_storage
from adaptcache.tuning.target import Target
from adaptcache.tuning.tune import begin, find_calls, tune
from tests.alike import assert_alike

optuna = pytest.importorskip("optuna")
WORDS = tuple("a " + "very " * k + "small lighthouse" for k in range(9))
TRIALS = 10
USUAL = {"trials": TRIALS, "batch_size": 3, "eval_prompts": WORDS[6:], "progress": False}


class Loud(Pipe):
    """Its outputs are so large that no plan that skips calls comes close to a full run."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return tuple(1e3 * x for x in super().__call__(*args, **kwargs))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models wait longer for a second thread than it saves."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def _short_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are taken for dead after a second."""
    monkeypatch.setattr(studies, "BEAT", 1)
    monkeypatch.setattr(studies, "GRACE", 1)


def toy_tuned(place: Path | str | None, pipe: Any = None, **options: Any) -> Tuned:
    return tune(pipe or Pipe(), WORDS[:6], 8, storage=place, **({"speed": 2} | USUAL | options))


def toy_search(place: Path | str | None, **options: Any) -> Search:
    return begin(Pipe(), WORDS[:6], 8, storage=place, **({"speed": 2} | USUAL | options))


@pytest.fixture(scope="module")
def whole() -> Tuned:
    """A search that was not disturbed."""
    return toy_tuned(None)


@pytest.fixture(scope="module")
def flux() -> tuple[Tuned, list[Any]]:
    """A search on a real pipeline, and its prompts: 5 to fit on, 4 to select by, 3 held out."""
    prompts = embedded(12)
    found = tune(
        tiny_flux(), prompts[:9], STEPS, pipe_kwargs=CALL.arguments, max_calls=4, eval_prompts=prompts[9:],
        trials=12, batch_size=5, progress=False,
    )  # fmt: skip
    return found, prompts


def run(pipe: Any, prompts: Any, first: int, schedule: Any = None, steps: int = 8, **options: Any) -> Any:
    call = CALL.of(pipe, **options) if steps == STEPS and hasattr(pipe, "vae") else None
    setup = call or begin(pipe, WORDS[:6], steps, speed=2, progress=False).evaluator.setup
    return generate(setup, PromptSet(tuple(prompts), first), schedule)


# What comes out


def test_the_tuned_schedule_is_what_its_front_says(flux: tuple[Tuned, list[Any]]) -> None:
    found, prompts = flux
    (point,) = found.front.points
    assert found.front.chosen == 0 and point.schedule == found.schedule and point.gain >= 0
    made, full = (run(tiny_flux(), prompts[9:], 9, one, batch_size=5) for one in (found.schedule, None))
    assert made.calls == point.calls == 4
    values = [psnr(a, b) for a, b in zip(made.images, full.images, strict=True)]
    assert found.schedule.evidence and found.schedule.evidence.n == 3
    assert found.schedule.evidence.psnr["mean"] == pytest.approx(np.mean(values), abs=1e-3)


def calibrated(pipe: Any, prompts: list[Any], steps: int, calls: int, **options: Any) -> Schedule:
    """Returns what calibrating on all prompts finds."""
    setup = make_setup(pipe, steps, options)
    chosen = PromptSet.of(prompts)
    return fit_schedule(measure(setup, chosen), calls)


def test_it_is_what_calibrating_finds_or_surely_better_on_the_select_prompts(flux: tuple[Tuned, list[Any]]) -> None:
    found, prompts = flux
    (point,) = found.front.points
    options: dict[str, Any] = {"pipe_kwargs": CALL.arguments, "batch_size": 5, "progress": False}
    start = calibrated(tiny_flux(), prompts[:9], STEPS, 4, **options)
    plan = tuple(start.rules[0].policy.steps(start.grid.times))
    evaluator = begin(tiny_flux(), prompts[:9], STEPS, max_calls=4, **options).evaluator
    values = [value for rung in evaluator.judge(evaluator.fit(Candidate(plan))[0]) for value in rung]
    assert point.select["mean"] - point.gain == pytest.approx(np.mean(values), abs=1e-3)
    if point.gain == 0:
        assert_alike(found.schedule.rules, start.rules)


@pytest.mark.parametrize("calls", [2, 3, 5])
def test_with_no_trial_but_the_first_it_is_what_calibrating_finds(calls: int) -> None:
    start = calibrated(Pipe(), WORDS[:6], 8, calls, batch_size=3, progress=False)
    found = toy_tuned(None, speed=None, max_calls=calls, trials=1)
    assert found.front.points[0].gain == 0
    assert_alike(found.schedule.rules, start.rules)


def test_the_whole_front_rises_and_its_points_run() -> None:
    front = toy_tuned(None, speed=None, trials=40).front
    means = [point.select["mean"] for point in front.points]
    assert len(means) > 3 and means == sorted(means) and front.chosen is None
    for point in front.points:
        assert run(Pipe(), WORDS[:1], 0, point.schedule).calls == point.calls
        assert point.schedule.evidence and point.schedule.evidence.calls == (point.calls, 8)


def test_a_quality_is_certified_and_the_certificate_is_in_the_front() -> None:
    found = toy_tuned(None, speed=None, min_psnr=40.0, max_failure_rate=0.7, trials=20)
    certificate = found.schedule.evidence.certificate
    assert certificate.certified is not None and certificate.upper <= 0.7
    assert found.sentence == certificate.sentence
    chosen = found.front.points[found.front.chosen]
    assert chosen.calls == found.schedule.evidence.calls[0] < 8
    assert chosen.schedule.evidence == found.schedule.evidence


def test_where_no_plan_reaches_a_quality_it_says_that_the_full_run_alone_does() -> None:
    found = toy_tuned(None, Loud(), speed=None, min_psnr=90.0, max_failure_rate=0.7, trials=20)
    assert found.front.chosen is None and found.schedule.evidence.calls == (8, 8)
    assert found.sentence.startswith("Do not cache: the full run alone meets min psnr 90 dB.")
    assert "Do not cache" in found.schedule.evidence.verdict
    made, plain = (run(Loud(), WORDS[:2], 0, schedule) for schedule in (found.schedule, None))
    assert all(np.array_equal(a, b) for a, b in zip(made.images, plain.images, strict=True))


def test_variants_of_one_subject_count_once_in_a_certificate() -> None:
    options = {"speed": None, "min_psnr": 40.0, "max_failure_rate": 0.7, "trials": 8}
    alone = toy_tuned(None, **options).schedule.evidence.certificate
    grouped = toy_tuned(None, groups=("one", "one", "two"), **(options | {"max_failure_rate": 0.8}))
    assert alone.n == 3 and grouped.schedule.evidence.certificate.n == 2
    with pytest.raises(ValueError, match=r"2 held-out subjects cannot show .* 70 % fail: 3 are"):
        toy_tuned(None, groups=("one", "one", "two"), **options)
    with pytest.raises(ValueError, match="2 groups for 3 held-out prompts"):
        toy_tuned(None, groups=("one", "two"), **options)


@pytest.mark.parametrize("target", [{"max_calls": 8}, {"max_latency": 60.0}])
def test_a_target_that_the_full_run_meets_is_met_by_the_full_run(target: dict[str, Any]) -> None:
    found = toy_tuned(None, speed=None, trials=60, **target)  # nothing is skipped: there is one candidate
    assert found.front.trials == 1 and found.front.points[0].calls == 8
    assert found.sentence.startswith("The full run alone meets max") and found.gained == (0, 0)
    assert found.schedule.evidence and found.schedule.evidence.psnr["mean"] == 100


def test_what_is_chosen_does_not_depend_on_held_out_prompts() -> None:
    points = [toy_tuned(None, eval_prompts=some).front.points[0] for some in (WORDS[6:8], WORDS[8:], ())]
    bare = [point.schedule.model_copy(update={"evidence": None}) for point in points]
    assert bare[0] == bare[1] == bare[2] and points[2].schedule.evidence is None


def test_old_spellings_are_translated_by_the_public_function(whole: Tuned, tmp_path: Path) -> None:
    old = {"steps": 8, "call": {}, "held_out": WORDS[6:], "store": Cache(tmp_path), "at_most": 0.05}
    rest = {name: value for name, value in USUAL.items() if name != "eval_prompts"}
    with pytest.warns(DeprecationWarning, match="held_out is called eval_prompts now"):
        assert adaptcache.tune(Pipe(), WORDS[:6], speed=2, **old, **rest) == whole
    with pytest.raises(TypeError, match="tune takes no height, held_out"):
        toy_tuned(None, height=3, held_out=WORDS[6:])


# The study


def test_the_same_search_finds_the_same_and_continues_with_more_trials(whole: Tuned, tmp_path: Path) -> None:
    first = toy_tuned(f"sqlite:///{tmp_path}/t.db", trials=7)
    rest = toy_tuned(f"sqlite:///{tmp_path}/t.db", resume=True)
    assert first.front.trials == 7 and rest == whole and first.study == rest.study


def test_a_journal_file_will_do(whole: Tuned, tmp_path: Path) -> None:
    toy_tuned(tmp_path / "trials.log", trials=6)
    assert toy_tuned(tmp_path / "trials.log", resume=True) == whole


def place_of(kind: str, folder: Path) -> str:
    return f"sqlite:///{folder}/t.db" if kind == "sqlite" else str(folder / "trials.log")


def die_in_a_trial(search: Search, drawn: bool) -> None:
    """Leaves a trial as a worker does that is killed after, or before, its parameters are drawn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trial = search.study.ask()
        search.study._storage.record_heartbeat(trial._trial_id)
    if drawn:
        Candidate.suggest(trial, search.steps)
        trial.set_user_attr("drawn", trial.number)
    else:
        trial.suggest_int("calls", 1, search.steps)


@pytest.mark.usefixtures("_short_lives")
@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_the_trial_of_a_dead_worker_is_failed_and_made_again_once(kind: str, tmp_path: Path) -> None:
    place = place_of(kind, tmp_path)
    toy_tuned(place, trials=2)
    dying = toy_search(place, resume=True)
    die_in_a_trial(dying, drawn=True)
    found = toy_tuned(place, resume=True)
    trials = dying.study.get_trials()
    states = [trial.state.name for trial in trials]
    assert found.front.trials == TRIALS and states.count("FAIL") == 1 and len(trials) == TRIALS + 1
    (dead,) = [trial for trial in trials if trial.state.name == "FAIL"]
    again = [one for one in trials if one.system_attrs.get("failed_trial") == dead.number and one is not dead]
    assert [one.params for one in again] == [dead.params] and again[0].state.name in ("COMPLETE", "PRUNED")


@pytest.mark.usefixtures("_short_lives")
def test_parameters_of_a_worker_that_died_while_it_drew_are_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studies, "DRAWING", timedelta(seconds=1))
    place = place_of("sqlite", tmp_path)
    toy_tuned(place, trials=2)
    dying = toy_search(place, resume=True)
    die_in_a_trial(dying, drawn=False)
    found = toy_tuned(place, resume=True)
    made = dying.finished
    assert found.front.trials == len(made) == TRIALS
    assert len({Candidate.suggest(trial, 8) for trial in made}) == TRIALS


def test_workers_share_the_trials_and_make_none_twice(tmp_path: Path) -> None:
    place = f"sqlite:///{tmp_path}/t.db"
    searches = [toy_search(place, trials=16, resume=True) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(Search.run, searches))
    made = searches[0].finished
    assert len(made) == len({Candidate.suggest(trial, 8) for trial in made}) == 16
    assert not live_trials(searches[0].study, optuna.trial.TrialState.RUNNING)
    assert conclude(searches[0]).front.points[0].gain >= 0


def test_a_worker_that_was_taken_for_dead_drops_its_trial(tmp_path: Path) -> None:
    search = toy_search(f"sqlite:///{tmp_path}/t.db")
    fit, asleep = search.evaluator.fit, []

    def slow(candidate: Candidate, *more: Any) -> Any:
        if len(search.finished) == 3 and not asleep:
            (running,) = live_trials(search.study, optuna.trial.TrialState.RUNNING)
            asleep.append(search.study.tell(running.number, state=optuna.trial.TrialState.FAIL))
        return fit(candidate, *more)

    search.evaluator.fit = slow  # type: ignore[method-assign]
    search.run()
    assert len(asleep) == 1 and len(search.finished) == TRIALS
    assert conclude(search).front.points[0].gain >= 0


def test_trials_that_are_there_are_not_continued_unasked(tmp_path: Path) -> None:
    place = f"sqlite:///{tmp_path}/t.db"
    toy_tuned(place, trials=6)
    with pytest.raises(ValueError, match=r"6 trials .*resume"):
        toy_tuned(place)


def test_studies_are_named_by_what_they_are_about(tmp_path: Path) -> None:
    options: list[dict[str, Any]] = [{}, {"seed": 1}, {"speed": 3}, {"eval_prompts": ()}, {"trials": 20}]
    names = [toy_search(None, **one).study.study_name for one in options]
    assert len(set(names)) == 3 and names[0] == names[3] == names[4]  # what is only reported on is not


def test_the_default_storage_is_in_the_cache_folder(tmp_path: Path) -> None:
    toy_tuned(None, cache_dir=tmp_path, trials=6)
    names = optuna.get_all_study_names(f"sqlite:///{tmp_path}/tuning.db")
    assert len(names) == 1 and names[0].startswith("adaptcache-")


def test_a_storage_that_is_some_other_file_is_named_and_left_alone(tmp_path: Path) -> None:
    for name, content in (("notes.txt", b"buy milk\n"), ("photo.log", b"\x89PNG\r\n\x1a\n" + bytes(99))):
        path = tmp_path / name
        path.write_bytes(content)
        for place in (path, f"sqlite:///{path}"):
            with pytest.raises(ValueError, match=f"cannot open the storage .*{name}: "):
                toy_tuned(place)
        assert path.read_bytes() == content
    assert isinstance(open_storage(tmp_path / "new.log", None), Journal)
    for place in (tmp_path, f"sqlite:///{tmp_path}", "sqlite:////proc/trials.db"):
        with pytest.raises(ValueError, match=r"cannot open the storage .*(is a folder|cannot write)"):
            open_storage(place, None)


def test_a_storage_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    search = toy_search(None)

    def broken(*_: Any, **__: Any) -> None:
        raise optuna.exceptions.StorageInternalError("it is gone\nand more")

    monkeypatch.setattr(search.study, "optimize", broken)
    with pytest.raises(RuntimeError, match=r"^the trials cannot be stored: it is gone; resume later$"):
        search.run()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"budget": 0.5}, "speed and budget are two targets"),
        ({"speed": 0.5}, r"speed must be in \[1, 8\] for 8 steps, got 0.5"),
        ({"speed": None, "max_calls": 9}, r"max_calls must be in \[1, 8\] for 8 steps, got 9"),
        ({"speed": None, "max_calls": 0}, r"max_calls must be in \[1, 8\] for 8 steps, got 0"),
        ({"speed": None, "max_latency": 0.0}, "max_latency must be above 0 seconds, got 0"),
        ({"speed": None, "max_latency": math.inf}, "max_latency must be above 0 seconds, got inf"),
        ({"speed": None, "min_psnr": 35.0}, "3 held-out prompts cannot show .*: 59 are the least"),
        (
            {"speed": None, "min_psnr": 35.0, "max_failure_rate": 1.0},
            "must be a share between 0 and 1, got 1",
        ),
        ({"speed": None, "min_psnr": 120.0}, "nothing reaches 120 dB"),
        ({"trials": 0}, "trials must be above 0, got 0"),
        ({"speed": None, "trials": 1}, r"the first \d+ trials are what calibrate finds, got 1"),
        ({"timeout": -1.0}, "timeout must be above 0, got -1"),
        ({"eval_prompts": WORDS[5:]}, "held-out prompt 0 is the same as calibration prompt 5"),
        ({"resume": True}, "nothing can be resumed from memory"),
        ({"place": "nosuchdb://host/x"}, "cannot open the storage nosuchdb://host/x"),
        ({"place": "postgresql://me:secret@localhost:1/x"}, r"cannot open the storage postgresql://\.\.\.:"),
        ({"name": "a/b"}, "is no name"),
    ],
)
def test_bad_arguments_are_one_line_before_any_run(options: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        toy_tuned(options.pop("place", None), **options)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_prompts_are_split_in_halves_that_have_none_in_common() -> None:
    evaluator = begin(Pipe(), WORDS[:5], 8, speed=2, progress=False).evaluator
    assert evaluator.half == 3 and len(evaluator.truth) == 2
    with pytest.raises(ValueError, match="1 prompts have no two halves"):
        tune(Pipe(), WORDS[:1], 8, speed=2)
    with pytest.raises(ValueError, match="is the same as calibration prompt 0"):
        tune(Pipe(), [*WORDS[:3], WORDS[0]], 8, speed=2)


# What is tried next, and what is given up


def trial(number: int, candidate: Candidate, value: float | None, psnr: Any = ()) -> Any:
    """Returns a finished trial, as optuna stores it."""
    state = optuna.trial.TrialState.PRUNED if value is None else optuna.trial.TrialState.COMPLETE
    made = optuna.trial.FrozenTrial(
        number, state, value, None, None, {}, {}, {"drawn": number, "error": 0.1}, {}, dict(enumerate(psnr)),
        number,
    )  # fmt: skip
    made.params = {name: one for name, one in candidate.params.items() if name not in ("plan", "call 0")}
    return made


def sampler_of(target: Target, choices: Any, steps: int = 28) -> MoveSampler:
    from toy import profile

    return MoveSampler(lambda calls: tuple(range(calls)), profile(steps), target, choices, trials=99, seed=0)


def test_a_candidate_is_the_parameters_of_its_trial() -> None:
    one = Candidate((0, 3, 7), 6, "x", 1e-3, "swap")
    assert Candidate.suggest(optuna.trial.FixedTrial(one.params), 12) == one
    assert one == Candidate((0, 3, 7), 6, "x", 1e-3, "shift") != Candidate((0, 3, 7), 5, "x", 1e-3, "swap")
    assert all(getattr(Candidate((0,)), name) in values for name, values in SPACE.items())


def test_what_calibrate_finds_is_tried_first_and_nothing_twice() -> None:
    sampler, made = sampler_of(Target(speed=3), [4], 12), list[Any]()
    for number in range(40):
        candidate = sampler.propose(number, made)
        assert candidate and len(candidate.plan) == 4 and candidate.plan[0] == 0
        made.append(trial(number, candidate, float(number % 7)))
    tried = [Candidate.suggest(one, 12) for one in made]
    assert tried[0] == sampler.start(4) and len(set(tried)) == 40


def test_a_quality_is_looked_for_by_bisection() -> None:
    sampler, made = sampler_of(Target(min_psnr=40.0), range(1, 28)), list[Any]()
    while len(chosen := sampler.next_calls(made, set())) == 1:  # 40 dB are reached from 10 calls on
        made.append(trial(len(made), Candidate(tuple(range(chosen[0]))), 20.0 + 2 * chosen[0]))
    tried = [one.params["calls"] for one in made]
    assert chosen == [9, 10] and tried[0] == 14 and len(made) < 10
    assert {11, 12, 13, 15} <= set(tried)  # for a certificate that asks for more


def test_a_neighbour_is_one_move_away() -> None:
    sampler, rng = sampler_of(Target(speed=3), [4], 12), np.random.default_rng(0)
    parent = Candidate((0, 2, 3, 9))
    for _ in range(200):
        other = sampler.neighbour(parent, rng)
        moved = len(set(other.plan) - set(parent.plan))
        changed = sum(getattr(other, name) != getattr(parent, name) for name in ("history", "features", "ridge"))
        assert moved <= (2 if other.origin == "shift two" else 1) and changed <= 1 and not (moved and changed)
        assert len(other.plan) == 4 and other.plan[0] == 0


@pytest.mark.parametrize("far", [False, True])
def test_a_move_puts_one_call_elsewhere(far: bool) -> None:
    rng, plan = np.random.default_rng(0), (0, 2, 3, 9)
    for _ in range(200):
        other = move_call(plan, 12, rng, far)
        (gone,), (new,) = set(plan) - set(other), set(other) - set(plan)
        assert other[0] == 0 and list(other) == sorted(other) and (far or abs(gone - new) <= 3)
        plan = other
    assert move_call((0,), 12, rng) == (0,) and move_call((0, 1, 2), 3, rng) == (0, 1, 2)


def test_moved_plans_are_sieved_by_the_closed_form() -> None:
    sampler = sampler_of(Target(speed=3), [4], 12)
    parent, weights = Candidate((0, 2, 3, 9)), np.sqrt(sampler.profile.sensitivity)
    plans = [sampler.neighbour(parent, np.random.default_rng(k)).plan for k in range(100)]
    blind = [move_call(parent.plan, 12, np.random.default_rng(k)) for k in range(100)]
    sieved, unsieved = (np.mean([plan_cost(sampler.errors, weights, p) for p in some]) for some in (plans, blind))
    assert sieved < unsieved


def test_a_trial_is_pruned_when_prompt_after_prompt_is_worse() -> None:
    search = toy_search(None)
    best, plan = [40.0, 45.0, 50.0, 42.0], Candidate((0, 1, 2, 3))
    search.study.add_trial(
        optuna.create_trial(
            value=44.25, intermediate_values=dict(enumerate(best)), user_attrs={"drawn": 0},
            params={"calls": 4}, distributions={"calls": optuna.distributions.IntDistribution(1, 8)},
        )
    )  # fmt: skip

    def pruned(values: list[float], calls: int = 4) -> bool:
        one = trial(1, plan, None, values)
        one.params = {**one.params, "calls": calls}
        return search.study.pruner.prune(search.study, one)

    assert pruned([value - 0.1 for value in best]) and not pruned([value - 0.1 for value in best], calls=5)
    assert not pruned([39.0, 46.0, 51.0, 41.0])  # worse on some
    assert not pruned(best) and not pruned([39.0, 44.0])  # too few to be sure


def test_final_latents_that_are_far_off_end_a_trial_before_any_image() -> None:
    search = toy_search(None, trials=30)
    search.run()
    why = [one.user_attrs["why"] for one in search.finished if not one.intermediate_values]
    assert why and all("times as wrong as the best" in one for one in why)
    starts = [one for one in search.finished if Candidate.suggest(one, 8) == search.sampler.start(4)]
    assert starts and all(one.state.name == "COMPLETE" for one in starts)  # that never is


def test_leaders_are_ranked_and_gains_have_an_error() -> None:
    known = [trial(k, Candidate(tuple(range(4))), value) for k, value in enumerate((1.0, None, 3.0, 3.0))]
    assert [one.number for one in leaders(known, 4)] == [2, 3, 0] and leaders(known, 5) == []
    assert gain([1, 2, 3], [0, 0, 0]) == pytest.approx((2, 1 / 3**0.5)) and gain([1], [0]) == (1, 0)
    values = [40.0, 45.0, 50.0, 42.0]
    assert Target(speed=2).worth(values) == pytest.approx(np.mean(values))
    assert Target(min_psnr=40.0).worth(values) < np.mean(values) - np.std(values)


def test_the_most_calls_that_fit_into_a_time_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    evaluator = toy_search(None).evaluator
    times, asked = evaluator.full.grid.times, []

    def latency(rule: Any) -> float:
        asked.append(len(rule.policy.steps(times)))
        return 0.1 + 0.07 * asked[-1]

    monkeypatch.setattr(type(evaluator), "latency", lambda self, rule: latency(rule))
    assert [find_calls(limit, evaluator) for limit in (0.4, 9.0, 0.17)] == [4, 8, 1]
    with pytest.raises(ValueError, match=r"one call takes 0.17 s, so 0.1 s cannot be met"):
        find_calls(0.1, evaluator)
    asked.clear()
    place = tmp_path / "t.log"
    for resume in (False, True):  # measured once, and kept
        search = toy_search(place, speed=None, max_latency=0.4, resume=resume)
        assert search.sampler.choices == (4,) and 0 < len(asked) < 6
