"""What a REPL or a traceback shows of a schedule and its parts fits on the screen."""

from pathlib import Path

import pytest
import toy

from adaptcache.forecasts.matched import Matched
from adaptcache.forecasts.open_loop import OpenLoop
from adaptcache.policies.plan import Plan
from adaptcache.schedule.schedule import Schedule

SHIPPED = sorted((Path(__file__).parents[1] / "schedules").glob("*.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_all_parts_of_a_shipped_schedule_are_shown_in_a_few_lines(path):
    schedule = Schedule.load(path)
    rule = schedule.rules[0]
    for part in (schedule, rule, rule.policy, rule.forecast, schedule.kernel, schedule.grid, schedule.evidence):
        assert type(part).__name__ in repr(part) and len(repr(part)) < 1000
        assert len(str(part)) < 2000 and "\n" not in repr(part)


def test_short_parts_are_shown_whole():
    assert repr(Plan.of([0, 2], (1.0, 0.6, 0.3))).count("...") == 0
    assert "history=2" in repr(Matched(history=2, features=(), table=((((), (1.0,)),),)))


def test_a_profile_says_what_was_measured():
    assert repr(toy.profile(12)) == "Profile(12 steps, 4 prompts, sensitivities of 0)"


def test_a_representation_changes_nothing_that_is_kept(tmp_path):
    gram = tuple(tuple(float(i == j) for j in range(40)) for i in range(40))
    forecast = OpenLoop(times=tuple(1 - i / 40 for i in range(40)), gram=gram)
    assert len(repr(forecast)) < 600
    assert OpenLoop.model_validate(forecast.model_dump()) == forecast
