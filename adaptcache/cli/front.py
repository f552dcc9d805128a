"""Fronts on the screen: a line a point, and the one that is picked."""

from pathlib import Path

from rich.text import Text

from ..errors import ScheduleError
from ..files import check_writable
from ..limits import NODES
from ..schedule.format import read_artifact
from ..tuning.front import LARGEST, POINTS, Front
from .files import wrote
from .screen import new_table, out, print_json


def holds_front(path: Path) -> bool:
    """Whether a file says that it is a front; what cannot be read is no front."""
    try:
        data = read_artifact(path, "front", "tune", LARGEST, POINTS * NODES)
    except ScheduleError:
        return False
    return isinstance(data, dict) and "front" in data and "points" in data


def show_front(path: Path, pick: str | None, to: Path | None, json: bool) -> None:
    """Prints a front, or writes one of its schedules."""
    front = Front.load(path)
    if pick is None and to is None:
        if json:
            print_json(front.data())
        else:
            describe_front(front)
        return
    if pick is None:
        raise ValueError("say which point to write: --pick 10 (calls) or --pick 35dB (quality)")
    point = front.pick(pick)
    where = check_writable(to or Path("schedules") / f"{point.schedule.name}.json")
    said = wrote(where)
    point.schedule.save(where)
    if json:
        print_json({"schedule": str(where), "calls": point.calls, **point.select})
    else:
        out.print(f"{point.calls} calls, {point.select['mean']:.1f} dB; {said}")


def describe_front(front: Front) -> None:
    """Prints a front for people."""
    out.print(Text.assemble((front.name, "bold"), f": {front.target}, {front.trials} trials"))
    numbers = ("calls", "speed", "PSNR dB", "5th pct", "over calibrate", "held-out", "5th pct")
    view = new_table("", *numbers, "found by", right=numbers, whole=(*numbers, "found by"))
    for number, point in enumerate(front.points):
        seen, steps = point.schedule.evidence, len(point.schedule.grid.times)
        held_out = (f"{seen.psnr['mean']:.1f}", f"{seen.psnr['p05']:.1f}") if seen else ("-", "-")
        view.add_row(
            "→" if number == front.chosen else "", str(point.calls), f"{steps / point.calls:.2f}x",
            f"{point.select['mean']:.1f}", f"{point.select['p05']:.1f}", f"{point.gain:+.2f}", *held_out,
            point.origin,
        )  # fmt: skip
    out.print(view)
