"""The page to play with: three runs beside each other, schedules on demand, on this machine alone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from browser import Browser, missing
from conftest import CALL, STEPS, Run, refused, schedule_of
from test_docs import speaking

from adaptcache.engines import make_setup
from adaptcache.report.play import Player


@pytest.fixture
def player() -> Player:
    pipe = speaking()
    setup = make_setup(pipe, STEPS, {"pipe_kwargs": CALL.arguments, "batch_size": 2, "progress": False})
    return Player(setup, ["a fox", "a bowl"], pipe=pipe)


def test_a_prompt_is_run_in_full_by_a_schedule_and_with_as_many_plain_steps(player: Player) -> None:
    (_, full), (name, ours), (_, plain) = player.play("a cat", 3, 4)
    assert (full.calls, ours.calls, plain.calls, plain.steps) == (STEPS, 4, 4, 4) and name == "adaptcache, 4 calls"
    again = player.play("a cat", 3, 5)
    assert again[0][1] is full and sorted(player.fitted) == [4, 5]  # nothing is run or fitted twice
    assert player.play("a cat", 4, 4)[0][1] is not full
    shown = player.show("a cat", 3, 4)
    assert shown.count("<img") == 3 and len(re.findall(r"[\d.]+ dB|exact", shown)) == 2


def test_given_schedules_are_taken_the_nearest_first(player: Player) -> None:
    player.schedules = [schedule_of(player.pipe, plan) for plan in ([0, 3], [0, 1, 2, 4, 6])]
    assert player.choices == [2, 5]
    assert player.schedule(3) is player.schedules[0] and player.schedule(6) is player.schedules[1]


def test_what_goes_wrong_is_said_on_the_page_as_text(player: Player, monkeypatch: pytest.MonkeyPatch) -> None:
    def play(*_: object) -> None:
        raise ValueError("no <b>such</b> prompt")

    monkeypatch.setattr(player, "play", play)
    assert player.show("", 0, 4) == "<p>no &lt;b&gt;such&lt;/b&gt; prompt</p>"


def test_without_gradio_the_extra_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    refused(run("play"), "pip install 'adaptcache-diffusers[play]'")


@pytest.mark.slow
@pytest.mark.skipif(bool(missing()), reason=missing() or "there is one")
def test_the_page_works_in_a_browser_and_asks_nobody_else(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    words = [sys.executable, "-m", "adaptcache", "play", "--model", "emoji-flux-32", "--steps", "6"]
    environment = {**os.environ, "ADAPTCACHE_HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    served = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert served.stdout
        address = re.search(r"http://127\.0\.0\.1:\d+/", served.stdout.readline())
        assert address
        with Browser() as driven:
            driven.ask("/url", {"url": address[0]})
            for _ in range(300):
                if driven.run("return document.querySelectorAll('.played img').length") == 3:
                    break
                time.sleep(0.2)
            said = driven.run("return document.querySelector('.played').innerText")
            assert "full run, 6 steps" in said and "plain steps" in said and said.count(" dB") == 2
            fetched = driven.run("return performance.getEntriesByType('resource').map(e => e.name)")
            assert [name for name in fetched if not name.startswith((address[0], "data:", "blob:"))] == []
    finally:
        served.send_signal(signal.SIGINT)
        assert served.wait(60) == 130
