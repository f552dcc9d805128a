"""Tuning: never worse than calibrating, nothing lost, nothing counted twice."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adaptcache.tuning.aims import aims
from adaptcache.tuning.conclude import Tuned, concluded
from adaptcache.tuning.latency import most_calls
from adaptcache.tuning.moves import moved
from adaptcache.tuning.proposals import Proposer
from adaptcache.tuning.race import Seen, behind, chosen, hopeless, worth
from adaptcache.tuning.search import Search
from adaptcache.tuning.sets import split
from adaptcache.tuning.storage import alive, open_storage, optuna, worker
from conftest import CALL, STEPS, embedded, tiny_flux
from toy import Pipe

import adaptcache
from adaptcache.evaluation.generate import generate
from adaptcache.evaluation.metrics import psnr
from adaptcache.tuning.candidate import Candidate
from adaptcache.tuning.target import Target, seconds
from adaptcache.tuning.tune import begin, tune
from tests.calls import Call

WORDS = tuple("a " + "very " * k + "small lighthouse" for k in range(9))
TRIALS = 10
USUAL = {"steps": 8, "trials": TRIALS, "batch_size": 3, "held_out": WORDS[6:]}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models wait longer for a second thread than it saves."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def toy_tuned(place: Path | str | None, **options: Any) -> Tuned:
    return tune(Pipe(), WORDS[:6], storage=place, **({"speed": 2} | USUAL | options))


def toy_search(place: Path | str | None, **options: Any) -> Search:
    return begin(Pipe(), WORDS[:6], Target(speed=2), storage=place, **(USUAL | options))


@pytest.fixture(scope="module")
def whole() -> Tuned:
    """A search that nothing disturbed."""
    return toy_tuned(None)


@pytest.fixture(scope="module")
def flux() -> tuple[Tuned, list[Any]]:
    """A search on a real pipeline, and its prompts: 5 to fit on, 4 to select by, 3 held out."""
    prompts = embedded(12)
    found = tune(
        tiny_flux(), prompts[:9], steps=STEPS, call=CALL.arguments, max_calls=4, held_out=prompts[9:],
        trials=12, batch_size=5,
    )  # fmt: skip
    return found, prompts


def test_the_tuned_schedule_is_what_its_front_says(flux: tuple[Tuned, list[Any]]) -> None:
    found, prompts = flux
    (point,) = found.front.points
    assert found.front.chosen == 0 and point.schedule == found.schedule and point.gain >= 0
    pipe = tiny_flux()
    images = [
        generate(pipe, CALL, prompts[9:], schedule, batch_size=5, offset=9)
        for schedule in (found.schedule, None)
    ]
    assert images[0].calls == point.calls == 4
    values = [psnr(a, b) for a, b in zip(images[0].images, images[1].images, strict=True)]
    assert found.schedule.evidence and found.schedule.evidence.n == 3
    assert found.schedule.evidence.psnr["mean"] == pytest.approx(np.mean(values), abs=1e-3)


def test_it_is_what_calibrating_returns_or_surely_better_on_the_select_prompts(
    flux: tuple[Tuned, list[Any]],
) -> None:
    found, prompts = flux
    (point,) = found.front.points
    options: dict[str, Any] = {"steps": STEPS, "call": CALL.arguments, "batch_size": 5}
    start = adaptcache.calibrate(tiny_flux(), prompts[:9], budget=0.5, **options)
    plan = start.rules[0].policy.steps(start.grid.times)
    bench = begin(tiny_flux(), prompts[:9], Target(max_calls=4), **options).bench
    *_, values = bench.judged(bench.rule(Candidate(plan=tuple(plan)))[0])
    assert point.select["mean"] - point.gain == pytest.approx(np.mean(values), abs=1e-3)
    assert point.gain > 0 or found.schedule.rules == start.rules


@pytest.mark.parametrize("calls", [2, 3, 5])
def test_with_no_trials_but_the_first_it_is_what_calibrating_returns(calls: int) -> None:
    start = adaptcache.calibrate(Pipe(), WORDS[:6], steps=8, budget=calls / 8, batch_size=3)
    needed = len(toy_search(None).proposer.warm(calls))
    found = toy_tuned(None, speed=None, max_calls=calls, trials=needed)
    assert found.front.points[0].gain > 0 or found.schedule.rules == start.rules


def test_the_same_search_finds_the_same_and_goes_on_with_more_trials(whole: Tuned, tmp_path: Path) -> None:
    first = toy_tuned(f"sqlite:///{tmp_path}/t.db", trials=7)
    rest = toy_tuned(f"sqlite:///{tmp_path}/t.db", resume=True)
    assert first.front.trials == 7 and rest == whole and first.study == rest.study


def test_a_journal_file_will_do(whole: Tuned, tmp_path: Path) -> None:
    toy_tuned(tmp_path / "trials.log", trials=6)
    assert toy_tuned(tmp_path / "trials.log", resume=True) == whole


def test_the_trial_of_a_dead_worker_is_failed_and_made_again_once(whole: Tuned, tmp_path: Path) -> None:
    place = f"sqlite:///{tmp_path}/t.db"
    toy_tuned(place, trials=7)
    dying = toy_search(place, resume=True)
    assert dying.enqueue(dying.live())
    node = worker().split()[0]
    with pytest.warns(UserWarning, match="Heartbeat"):
        trial = dying.study.ask()
    trial.set_user_attr("worker", f"{node} 4194305 1")  # no system has so many processes
    assert toy_tuned(place, resume=True) == whole
    trials = dying.study.get_trials()
    states = [trial.state.name for trial in trials]
    assert states.count("FAIL") == 1 and len(trials) == TRIALS + 1
    (dead,) = [trial for trial in trials if trial.state.name == "FAIL"]
    again = [trial for trial in trials if trial.user_attrs["slot"] == dead.user_attrs["slot"]]
    assert len(again) == 2 and again[0].user_attrs["candidate"] == again[1].user_attrs["candidate"]


def test_what_was_enqueued_and_not_begun_is_taken_by_the_next(whole: Tuned, tmp_path: Path) -> None:
    place = f"sqlite:///{tmp_path}/t.db"
    toy_tuned(place, trials=7)
    dying = toy_search(place, resume=True)
    assert dying.enqueue(dying.live())
    assert toy_tuned(place, resume=True) == whole
    assert len(dying.study.get_trials()) == TRIALS


def test_workers_share_the_trials_and_make_none_twice(tmp_path: Path) -> None:
    place = f"sqlite:///{tmp_path}/t.db"
    searches = [toy_search(place, trials=16, resume=True) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(Search.run, searches))
    made = [trial for trial in searches[0].live() if trial.state.name in ("COMPLETE", "PRUNED")]
    assert sorted(trial.user_attrs["slot"] for trial in made) == list(range(16))
    assert len({Candidate.model_validate(trial.user_attrs["candidate"]).key for trial in made}) == 16
    assert concluded(searches[0]).front.points[0].gain >= 0


def test_trials_that_are_there_are_not_taken_up_unasked(tmp_path: Path) -> None:
    place = f"sqlite:///{tmp_path}/t.db"
    toy_tuned(place, trials=6)
    with pytest.raises(ValueError, match=r"6 trials .*resume"):
        toy_tuned(place)


def test_studies_are_named_by_what_they_are_about(tmp_path: Path) -> None:
    options: list[dict[str, Any]] = [{}, {"steps": 7}, {"seed": 1}, {"held_out": ()}, {"trials": 20}]
    names = [toy_search(None, **one).study.study_name for one in options]
    other = begin(Pipe(), WORDS[:6], Target(speed=3), steps=8, batch_size=3).study.study_name
    assert len({*names, other}) == 4 and names[0] == names[3] == names[4]  # what is only reported on is not


def test_a_search_that_has_tried_everything_ends() -> None:
    found = toy_tuned(None, speed=None, max_calls=8, trials=60)
    assert found.front.trials == 1 and found.front.points[0].calls == 8
    assert found.schedule.evidence and found.schedule.evidence.psnr["mean"] == 100


def test_the_whole_front_rises_and_its_points_run() -> None:
    front = toy_tuned(None, speed=None, trials=30).front
    means = [point.select["mean"] for point in front.points]
    assert len(means) > 3 and means == sorted(means) and front.chosen is None
    for point in front.points:
        assert generate(Pipe(), Call(8), WORDS[:1], point.schedule).calls == point.calls


def test_a_quality_is_certified_or_nothing_is_cached() -> None:
    wanted = {"speed": None, "at_most": 0.7, "trials": 20}
    found = toy_tuned(None, min_psnr=40.0, **wanted)
    certificate = found.schedule.evidence.certificate
    assert (
        certificate.certified is not None and certificate.upper <= 0.7 and found.sentence == str(certificate)
    )
    assert found.front.points[found.front.chosen].calls == found.schedule.evidence.calls[0] < 8
    hopeless = toy_tuned(None, min_psnr=100.5, **wanted)
    assert hopeless.front.chosen is None and hopeless.schedule.evidence.calls == (8, 8)
    assert hopeless.sentence == hopeless.schedule.evidence.verdict and "Do not cache" in hopeless.sentence
    plain = generate(Pipe(), Call(8), WORDS[:2]).images
    made = generate(Pipe(), Call(8), WORDS[:2], hopeless.schedule).images
    assert all(np.array_equal(a, b) for a, b in zip(made, plain, strict=True))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"budget": 0.5}, "speed and budget are two targets"),
        ({"speed": 0.5}, r"speed must be in \[1, 8\] for 8 steps, got 0.5"),
        ({"speed": None, "max_calls": 9}, r"max calls must be in \[1, 8\] for 8 steps, got 9"),
        ({"speed": None, "max_calls": 0}, "max calls must be 1 or more, got 0"),
        ({"speed": None, "max_latency": 0.0}, "max latency must be above 0 seconds, got 0"),
        ({"speed": None, "min_psnr": 35.0}, r"needs 59 held-out prompts or more, got 3: .* at most 0\.63"),
        ({"speed": None, "min_psnr": 35.0, "at_most": 1.0}, "at most must be a share between 0 and 1, got 1"),
        ({"trials": 0}, "trials must be 1 or more, got 0"),
        ({"speed": None, "trials": 1}, r"the first \d+ trials are what calibrate chooses from"),
        ({"timeout": -1.0}, "timeout must be above 0 seconds, got -1"),
        ({"held_out": WORDS[5:]}, "prompts 5 and 6 are the same"),
        ({"resume": True}, "nothing can be resumed from memory"),
        ({"place": "nosuchdb://host/x"}, "cannot open the storage nosuchdb://host/x"),
        ({"place": "postgresql://me:secret@localhost:1/x"}, r"cannot open the storage postgresql://\.\.\.:"),
        ({"name": "a/b"}, "is no name"),
    ],
)
def test_bad_arguments_are_one_line(options: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        toy_tuned(options.pop("place", None), **options)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_the_sets_have_nothing_in_common() -> None:
    sets = split(WORDS[:5], WORDS[5:])
    assert (len(sets.fit), len(sets.select)) == (3, 2)
    assert [*sets.fit, *sets.select, *sets.report] == list(WORDS)
    with pytest.raises(ValueError, match="1 calibration prompts cannot be split"):
        split(WORDS[:1], ())


def test_nothing_is_fitted_or_chosen_on_held_out_prompts() -> None:
    points = [toy_tuned(None, held_out=some).front.points[0] for some in (WORDS[6:8], WORDS[8:])]
    bare = [point.schedule.model_copy(update={"evidence": None}) for point in points]
    assert bare[0] == bare[1]


def test_the_default_storage_is_in_the_cache_folder(tmp_path: Path) -> None:
    toy_tuned(None, store=Store(tmp_path), trials=6)
    studies = optuna().get_all_study_names(f"sqlite:///{tmp_path}/tuning.db")
    assert len(studies) == 1 and studies[0].startswith("adaptcache-")


def test_a_process_knows_whether_another_is_there() -> None:
    node, process, since = worker().split()
    assert alive(worker()) and alive(f"{node} 4194305 1") is False
    assert alive(f"{node} {process} {int(since) + 1}") is False  # its number was given again
    assert alive(f"elsewhere {process} {since}") is None and alive("") is None
    assert open_storage("sqlite://", None) is not None


def seen(slot: int, calls: int, value: float | None, spread: Sequence[float] = (-1, 1, -2, 2)) -> Seen:
    values = tuple((value or 0.0) + part for part in spread)
    return Seen(slot, Candidate(plan=tuple(range(calls))), value, values, 0.1)


def test_a_quality_is_looked_for_by_bisection() -> None:
    class Never(Proposer):
        def warm(self, calls: int) -> list[Candidate]:
            return []

    target, proposer, before = Target(min_psnr=40.0), Never(None, 0), list[Seen]()
    for turn in range(4):  # 20 + 2 calls reach so many decibels: 40 from 10 calls on
        (calls,) = aims(target, range(1, 28), proposer, before, set())
        before.append(seen(turn, calls, 20 + 2 * calls))
    while len(shares := aims(target, range(1, 28), proposer, before, set())) == 1:
        before.append(seen(len(before), *shares, 20 + 2 * next(iter(shares))))
    assert set(shares) == {9, 10} and len(before) < 10
    assert {11, 12, 13, 15} <= {one.candidate.calls for one in before}  # for a certificate that asks for more


def test_luck_does_not_beat_what_calibrate_returns() -> None:
    start = seen(0, 4, 40.0)
    assert chosen(seen(1, 4, 41.0, (-3, 3, 0, 0.0)), start) is start
    better = seen(2, 4, 41.0)
    assert chosen(better, start) is better


def test_a_trial_is_given_up_when_prompt_after_prompt_is_worse() -> None:
    leader = [40.0, 45.0, 50.0, 42.0]
    assert behind([value - 0.1 for value in leader], leader)
    assert not behind([39.0, 46.0, 51.0, 41.0], leader)  # worse on some
    assert not behind(leader, leader) and not behind([39.0, 44.0], leader)  # too few to be sure
    one = seen(0, 4, 40.0)  # its error is 0.1
    assert hopeless(0.13, [one], 4) and not hopeless(0.12, [one], 4)
    assert not hopeless(0.13, [one], 5) and not hopeless(None, [one], 4) and not hopeless(0.13, [], 4)
    assert worth(leader, Target(speed=2)) == pytest.approx(np.mean(leader))
    assert worth(leader, Target(min_psnr=40.0)) < np.mean(leader) - np.std(leader)


@pytest.mark.parametrize("far", [False, True])
def test_a_move_puts_one_call_elsewhere(far: bool) -> None:
    rng, plan = np.random.default_rng(0), (0, 2, 3, 9)
    for _ in range(200):
        other = moved(plan, 12, rng, far)
        (gone,), (new,) = set(plan) - set(other), set(other) - set(plan)
        assert other[0] == 0 and list(other) == sorted(other) and (far or abs(gone - new) <= 3)
        plan = other
    assert moved((0,), 12, rng) == (0,) and moved((0, 1, 2), 3, rng) == (0, 1, 2)


def test_the_most_calls_that_fit_are_found() -> None:
    assert most_calls(1.0, 28, lambda calls: 0.1 + 0.07 * calls) == 12
    assert most_calls(9.0, 28, lambda calls: 0.1 + 0.07 * calls) == 28
    with pytest.raises(ValueError, match=r"takes 0.17 s with a single denoiser call, so 0.1 s cannot"):
        most_calls(0.1, 28, lambda calls: 0.1 + 0.07 * calls)


def test_a_latency_is_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def measured(bench: Any, proposer: Any, calls: int) -> float:
        asked.append(calls)
        return 0.1 * calls

    monkeypatch.setattr(sys.modules["adaptcache.tuning.tune"], "_seconds", measured)
    for resume in (False, True):
        search = begin(
            Pipe(),
            WORDS[:4],
            Target(max_latency=0.55),
            steps=12,
            storage=tmp_path / "t.log",
            resume=resume,
        )
        assert search.choices == (5,)
    assert len(asked) == len(set(asked)) < 7


def test_times_are_read() -> None:
    assert [seconds(text) for text in ("1.8s", "900ms", "2min", "3", "1h")] == [1.8, 0.9, 120, 3, 3600]
    for text in ("", "fast", "-1s", "1 day", "1.8.1s", "1e400s"):
        with pytest.raises(ValueError, match="is no time"):
            seconds(text)


def test_candidates_that_are_the_same_have_the_same_key() -> None:
    one = Candidate(plan=(0, 3), origin="shift")
    assert one.key == one.with_(origin="planner", order=3).key != one.with_(history=3).key
    other = one.with_(forecast="taylor")
    assert other.key == other.with_(history=3, ridge=1.0).key != other.with_(order=2).key
    assert json.loads(json.dumps(one.model_dump(mode="json"))) == one.model_dump(mode="json")
