"""Threads that take turns and meet."""

from __future__ import annotations

from functools import partial

import pytest

from adaptcache.calibration.lockstep import Lockstep


def test_all_get_the_answer_to_what_all_gave_in_their_order() -> None:
    team: Lockstep[int, list[int]] = Lockstep(3, list)
    seen: dict[int, list[list[int]]] = {0: [], 1: [], 2: []}

    def member(number: int) -> None:
        for turn in range(4):
            seen[number].append(team.meet(number, 10 * turn + number))

    team.run([partial(member, number) for number in range(3)])
    assert seen[0] == seen[1] == seen[2] == [[10 * t, 10 * t + 1, 10 * t + 2] for t in range(4)]


def test_only_one_runs_at_a_time() -> None:
    team: Lockstep[int, int] = Lockstep(4, sum)
    running, most = [0], [0]

    def member(number: int) -> None:
        for _ in range(50):
            running[0] += 1
            most[0] = max(most[0], running[0])
            running[0] -= 1
            team.meet(number, 1)

    team.run([partial(member, number) for number in range(4)])
    assert most[0] == 1


def test_the_error_of_one_ends_all_and_is_the_one_raised() -> None:
    team: Lockstep[int, int] = Lockstep(3, sum)

    def member(number: int) -> None:
        team.meet(number, 1)
        if number == 1:
            raise KeyError("prompt 1")
        team.meet(number, 1)

    with pytest.raises(KeyError, match="prompt 1"):
        team.run([partial(member, number) for number in range(3)])


def test_an_error_in_solving_is_raised() -> None:
    team: Lockstep[int, int] = Lockstep(2, lambda given: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        team.run([partial(team.meet, number, 1) for number in range(2)])
