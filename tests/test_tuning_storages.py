"""A search shared by processes, on each kind of storage: nothing lost, nothing made twice."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy import Pipe

from adaptcache.tuning import study as studies
from adaptcache.tuning.evaluator import Candidate
from adaptcache.tuning.front import conclude
from adaptcache.tuning.study import Search
from adaptcache.tuning.tune import begin
from tests.postgres import missing, server
from tests.processes import launch

WORDS = tuple("a " + "very " * k + "small lighthouse" for k in range(14))
TRIALS = 24
WORKERS = 3


def search(storage: str, folder: str) -> Search:
    return begin(
        Pipe(), WORDS[:8], 12, speed=3, trials=TRIALS, batch_size=4, eval_prompts=WORDS[8:], storage=storage,
        cache_dir=folder, resume=True, progress=False,
    )  # fmt: skip


def worked(storage: str, folder: str, dies: bool) -> int:
    """Works on a search until it is done, or is killed in its first trial; returns the trials begun."""
    studies.BEAT, studies.GRACE = 1, 2
    own, begun = search(storage, folder), []
    fit = own.evaluator.fit

    def fitted(candidate: Candidate, everything: bool = False) -> object:
        begun.append(1)
        if dies and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return fit(candidate, everything)

    own.evaluator.fit = fitted  # type: ignore[assignment, method-assign]
    own.run()
    return len(begun)


@pytest.fixture(params=["sqlite", "journal", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/trials.db"
    elif request.param == "journal":
        yield str(tmp_path / "trials.log")
    else:
        pytest.importorskip("psycopg", reason="no driver: pip install 'adaptcache-diffusers[postgres]'")
        if why := missing():
            pytest.skip(why)
        with server() as url:
            yield url


@pytest.mark.slow
@pytest.mark.parametrize("dies", [False, True])
def test_processes_share_a_search_and_one_of_them_may_die(storage: str, dies: bool, tmp_path: Path) -> None:
    folder = str(tmp_path / "store")
    first = search(storage, folder)
    begun = launch(worked, WORKERS, storage, folder, dies)
    if dies:
        assert begun[1] == -signal.SIGKILL
    others = [count for count in begun if count > 0]
    assert len(others) >= 2  # more than one had something to do
    made = first.finished
    assert len(made) == len({Candidate.suggest(trial, 12) for trial in made}) == TRIALS
    assert first.sampler.start(4) in {Candidate.suggest(trial, 12) for trial in made}
    assert not [trial for trial in first.study.get_trials() if trial.state.name in ("RUNNING", "WAITING")]
    assert conclude(first).front.points[0].gain >= 0


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_a_server_that_is_not_there_is_one_line_without_the_password(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(ValueError, match="cannot open the storage") as caught:
        search("postgresql+psycopg://me:secret@127.0.0.1:1/x", str(tmp_path))
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
