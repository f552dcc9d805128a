"""What verbs put on the screen: progress on stderr, results on stdout."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from ..evaluation.evaluate import Row

WIDEST = 400  # columns that a table may take
if not re.fullmatch("[1-9][0-9]{1,3}", os.environ.get("COLUMNS", "80")):
    del os.environ["COLUMNS"]  # rich would print nothing, or nothing but blanks


def printable(text: str) -> str:
    """Returns a text without what moves a cursor or clears a screen: some come out of strangers' files."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text)


class Screen(Console):
    """A console on which texts are texts."""

    def render_str(self, text: str, **options: Any) -> Any:
        """Returns a text as rich shows it."""
        return super().render_str(printable(text), **options)


class Stderr:
    """The stream of errors and progress: where its disk is full or its reader gone, the work goes on in silence."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> None:
        """Writes what can be written."""
        with suppress(OSError):
            self.stream.write(text)

    def flush(self) -> None:
        """Writes what waits, if that is possible."""
        with suppress(OSError):
            self.stream.flush()


out = Screen(
    markup=False, highlight=False, soft_wrap=True,  # names and paths may have [brackets]
    width=None if (sys.stdout and sys.stdout.isatty()) or "COLUMNS" in os.environ else WIDEST,  # piped: nothing is cut
)  # fmt: skip


def complain(line: str) -> None:
    """Prints a line on stderr, once where there are several processes."""
    if os.environ.get("RANK", "0") == "0":
        print(printable(line), file=sys.stderr)


class Stopped(BaseException):
    """Ctrl-C, SIGTERM or SIGHUP, by its number; its notes say what is kept."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def progress(shown: bool = True, kept: str = "", first: str = "") -> Iterator[Callable[[str, int, int], None]]:
    """Gives a function that takes the stage, what is done and of how much, and draws a bar a stage.

    Arguments:
        shown: Whether anything is drawn.
        kept: What is said to be kept where the work is stopped.
        first: A line that is said when the work begins.
    """
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    bars = Progress(*columns, console=Console(stderr=True))
    tasks: dict[str, Any] = {}

    def report(stage: str, done: int, of: int) -> None:
        if not tasks:
            if first:
                complain(first)
            bars.start()  # not before there is something to draw: an error is to be one line
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=of)
        bars.update(tasks[stage], completed=done, total=of)

    try:
        yield report if shown else lambda stage, done, of: None
    except Stopped as stop:
        if kept:
            stop.add_note(kept)
        raise
    except Exception:
        bars.live.transient = True  # an error is one line
        bars.live.stop()
        tasks.clear()
        raise
    finally:
        if tasks:
            bars.stop()


def counted(number: int, what: str) -> str:
    """Returns "1 step", "2 steps"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def new_table(*headings: str, right: Sequence[str] = (), whole: Sequence[str] = ()) -> Table:
    """Returns an empty table. The first column and those in `whole` are not wrapped, those in `right` stand right."""
    view = Table(box=None, header_style="bold")
    for heading in headings:
        kept = heading in whole or heading == headings[0]
        side: Any = "right" if heading in right else "left"
        view.add_column(heading, justify=side, no_wrap=kept, overflow="fold")
    return view


def quality_table(rows: list[Row], steps: int) -> Table:
    """Returns a table of what was measured against the full run."""
    from ..hub.card import format_psnr

    numbers = ("budget", "calls", "loop", "pipeline", "PSNR", "5th pct", "SSIM")
    view = new_table("", *numbers, right=numbers, whole=numbers)
    for row in rows:
        cost = f"{row.calls / steps:.2f}", str(row.calls), f"{row.loop:.2f}x", f"{row.total:.2f}x"
        psnr = format_psnr(row.psnr["mean"]), format_psnr(row.psnr["p05"])
        view.add_row(row.name, *cost, *psnr, f"{row.ssim['mean']:.4f}" if row.ssim else "-")
    return view


def print_whole(view: Table) -> None:
    """Prints a wide table: narrower screens wrap its lines, none of it is cut off."""
    width = out.width
    out.width = max(width, out.measure(view, options=out.options.update(width=WIDEST)).maximum)
    try:
        out.print(view)
    finally:
        out.width = width


def print_json(data: Any) -> None:
    """Prints one JSON document."""
    print(json.dumps(data, indent=1))
