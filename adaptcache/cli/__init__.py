"""The command line: one verb a file. Each reads files, calls one function and writes a file."""

from __future__ import annotations

import logging
import sys
import warnings
from contextlib import suppress

import typer

from .. import __version__
from ..distributed import RankError, launched
from .calibrate import calibrate
from .compare import compare
from .demo import demo
from .evaluate import evaluate
from .export import export
from .generate import generate
from .lint import lint
from .methods import methods
from .models import models
from .push import push
from .report import report
from .show import show
from .tune import tune

__all__ = ["app", "main"]

# What typer raises for words it does not understand; it gives the class no name.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]

SHARED = ("calibrate",)  # verbs that several processes can share

app = typer.Typer(
    help="Makes diffusion pipelines faster by learned caching: calibrate once, then attach the schedule.",
    epilog="Start with:  adaptcache demo",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
VERBS = (
    calibrate, tune, generate, evaluate, show, models, methods, lint, export, compare, report, push, demo,
)  # fmt: skip
for verb in VERBS:
    app.command()(verb)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"adaptcache {__version__}")
        raise typer.Exit


@app.callback()
def begin(
    context: typer.Context,
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
    debug: bool = typer.Option(
        False, "--debug", help="Show the traceback of an error, and log what happens."
    ),
) -> None:
    """Makes diffusion pipelines faster by learned caching: calibrate once, then attach the schedule."""
    verb = context.invoked_subcommand
    if launched()[1] > 1 and verb not in SHARED:
        raise ValueError(f"{verb} runs in one process; start it without torchrun or accelerate launch")
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING)
    if not debug:
        quiet()


def quiet() -> None:
    """Leaves the screen to our own lines: libraries stay silent, warnings become one line each."""
    import diffusers

    loud = [diffusers.utils.logging]
    with suppress(ImportError):  # an extra
        import transformers

        loud.append(transformers.utils.logging)
    for library in loud:
        library.set_verbosity_error()
        library.disable_progress_bar()
    # Rounding in Brownian trees, old ways to keep weights: nobody here can do anything about these.
    warnings.filterwarnings("ignore", module="torchsde")
    warnings.filterwarnings("ignore", message=r".*weight_norm. is deprecated")
    warnings.showwarning = lambda message, *_, **__: complain(f"warning: {message}")


def complain(line: str) -> None:
    """Prints a line on stderr, once where there are several processes."""
    if launched()[0] == 0:
        print(line, file=sys.stderr)


def main() -> None:
    """Runs the command line. Bad input gives one line on stderr and exit code 2."""
    debug = "--debug" in sys.argv
    try:
        sys.exit(app(standalone_mode=False) if len(sys.argv) > 1 else app(["--help"]))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except UsageError as error:
        complain(f"error: {error.format_message()} Try --help.")  # type: ignore[attr-defined]
        sys.exit(2)
    except (ValueError, LookupError, OSError, RuntimeError, TypeError, ImportError) as error:
        if debug:
            raise
        message = error.args[0] if isinstance(error, KeyError) else error
        line = "error: " + " ".join(str(message).split())
        if isinstance(error, RankError) and error.rank is None:  # nobody knows whether rank 0 still lives
            print(line, file=sys.stderr)
        else:
            complain(line)
        sys.exit(2)
