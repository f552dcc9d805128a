"""The command line: verbs of a kind in a file. Each reads files, calls one function and writes a file.

Verbs import what they need when they run: help, completion and wrong words are answered without torch.
"""

import io
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from .. import __version__
from ..errors import LESS_MEMORY, is_out_of_memory
from ..files import locate
from .calibrate import calibrate
from .compare import compare
from .evaluate import evaluate
from .export import export, push
from .generate import generate
from .report import demo, play, report
from .screen import Stderr, Stopped, complain, printable
from .show import lint, methods, models, show
from .tune import tune

__all__ = ["app", "main"]

# What typer raises for words it does not understand; it gives the class no name.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]

SHARED = ("calibrate",)  # verbs that several processes can share
RENAMED = {  # options by the names they had in version 0.1
    "check-on": "eval-on",
    "finer": "refine",
    "teacher-steps": "reference-steps",
    "at-most": "max-failure-rate",
}
MEANT = (ValueError, LookupError, OSError, RuntimeError, TypeError, ImportError, MemoryError)  # to be read by users
LONGEST = 2000  # characters of an error
GOES_WITH = {  # options that another one gives a meaning, by verb
    "evaluate": {"pictures": "to"},
    "export": {"model": "eval_on", "device": "eval_on"},
    "report": {"model": "pictures", "device": "pictures", "eval_on": "pictures"},
}
WORDS = {"token_normalize_func": lambda word: RENAMED.get(word, word)}


class Verb(typer.core.TyperCommand):
    """A verb: no word is empty, as a variable that a shell did not set was meant to say something, and none idle."""

    def invoke(self, context: Any) -> Any:
        """Runs the verb."""
        for param in self.params:
            value = context.params.get(param.name or "")
            if isinstance(value, Path):
                context.params[param.name or ""] = locate(value)  # a shell leaves --out=~/x as it is
            if "" in (value if isinstance(value, (list, tuple)) else [value]) and param.name != "prompt":
                if value != param.default:
                    raise ValueError(f"{param.opts[0]} is empty: say what it is, or leave it out")
        words = {param.name: param.opts[0] for param in self.params}
        for option, other in GOES_WITH.get(self.name or "", {}).items():
            given = getattr(context.get_parameter_source(option), "name", "") == "COMMANDLINE"
            if given and not context.params[other]:
                raise ValueError(f"{words[option]} is for what {words[other]} asks for: give it too, or leave it out")
        return super().invoke(context)


app = typer.Typer(
    epilog="Start with:  adaptcache demo",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
VERBS = (
    calibrate, tune, generate, evaluate, show, models, methods, lint, export, compare, report, play, push, demo,
)  # fmt: skip
for verb in VERBS:
    app.command(cls=Verb, context_settings=WORDS)(verb)


def print_version(asked: bool) -> None:
    """Prints the version, if it is asked for, and ends."""
    if asked:
        typer.echo(f"adaptcache {__version__}")
        raise typer.Exit


@app.callback()
def begin(
    context: typer.Context,
    version: Annotated[
        bool, Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, Option("--debug", help="Show the traceback of an error, and log what happens.")] = False,
) -> None:
    """Makes diffusion pipelines faster by learned caching: calibrate once, then attach the schedule."""
    verb = context.invoked_subcommand
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and verb not in SHARED:
        raise ValueError(f"{verb} runs in one process; start it without torchrun or accelerate launch")
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING)
    if not debug:
        quiet()


def quiet() -> None:
    """Leaves the screen to our own lines: libraries log errors only, warnings become one line each."""
    os.environ |= {f"{library}_VERBOSITY": "error" for library in ("DIFFUSERS", "TRANSFORMERS", "HF_HUB")}
    # Rounding in Brownian trees, old ways to keep weights: no user can change these.
    warnings.filterwarnings("ignore", module="torchsde")
    warnings.filterwarnings("ignore", message=r".*weight_norm. is deprecated")
    warnings.showwarning = lambda message, *_, **__: complain(f"warning: {message}")


@contextmanager
def stoppable() -> Iterator[None]:
    """Raises `Stopped` at Ctrl-C, at SIGTERM, and where the terminal is closed.

    After a long call of C the first line of Python may be that of a finalizer, where an exception is lost: then it is
    raised again a little later. What a thread raises, say a heartbeat of optuna's, is one line.
    """

    def stop(number: int, _: object) -> None:
        raise Stopped(number)

    def again(lost: Any) -> None:
        if isinstance(stopped := lost.exc_value, Stopped):
            threading.Timer(0.05, signal.raise_signal, [stopped.number]).start()
        else:
            sys.__unraisablehook__(lost)

    known = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in numbers}
    hooks = sys.unraisablehook, threading.excepthook
    sys.unraisablehook = again
    if "--debug" not in sys.argv:
        threading.excepthook = lambda lost: complain(explain(lost.exc_value or lost.exc_type()))
    try:
        yield
    finally:
        sys.unraisablehook, threading.excepthook = hooks
        for number, handler in before.items():
            signal.signal(number, handler)


def explain(error: BaseException) -> str:
    """Returns an error as one line."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)  # no quotes
    text = " ".join(printable(text).split()) or type(error).__name__
    if is_out_of_memory(error):
        text = f"{'. '.join(text.split('. ')[:2]).rstrip('.')}; {LESS_MEMORY}"
    else:
        text = " ".join([text, *(f"({note})" for note in getattr(error, "__notes__", ()))])
    if not isinstance(error, MEANT):
        text = f"{type(error).__name__}: {text}; perhaps a fault of adaptcache: --debug shows where"
    return f"error: {text if len(text) <= LONGEST else text[: LONGEST // 2] + ' ... ' + text[-LONGEST // 2 :]}"


def main() -> None:
    """Runs the command line. Bad input gives one line on stderr and exit code 2."""
    sys.stderr = Stderr(sys.stderr or open(os.devnull, "w"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a result is not lost for a letter that a terminal does not have
    try:
        with stoppable():
            sys.exit(app(sys.argv[1:] or ["--help"], standalone_mode=False))
    except Stopped as stop:
        complain("; ".join(["stopped", *getattr(stop, "__notes__", [])]))
        sys.exit(128 + stop.number)
    except typer.Abort:
        sys.exit(130)
    except UsageError as error:
        said = error.format_message()  # type: ignore[attr-defined]
        complain(f"error: {said}{'' if said.endswith(('.', '?')) else '.'} Try --help.")
        sys.exit(2)
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        if getattr(error, "rank", 0) is None:  # the connection to rank 0 is lost: it may be the one that died
            print(explain(error), file=sys.stderr)
        else:
            complain(explain(error))
        sys.exit(2)
