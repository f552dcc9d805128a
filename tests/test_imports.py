"""What imports what: inference no extras, lower rooms no higher ones, and only `engines/diffusers` diffusers."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adaptcache.forecasts import FORECASTS
from adaptcache.policies import POLICIES

PACKAGE = Path(__file__).resolve().parents[1] / "adaptcache"

# Rooms and files of the package, from the lowest; a line imports those above it, and rooms beside it in no direction.
# The values at the top level (`VALUES`) are one room.
VALUES = ["step", "profile", "hooks", "runs", "cache", "distributed", "deprecated"]
LAYERS = [
    ["errors", "files"], ["limits"], ["fitting"], VALUES, ["hub"], ["policies", "forecasts"], ["schedule"], ["sites"],
    ["runtime"], ["engines"], ["profiling"], ["evaluation"], ["calibration"], ["report"], ["comparison", "tuning"],
    ["presets"], ["cli"], ["__main__"],
]  # fmt: skip
HEIGHT = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}


def modules() -> dict[str, Path]:
    """Returns the files of the package by the name of their module."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(name: str, path: Path) -> Iterator[tuple[int, str]]:
    """Yields the lines and names of all that a module imports of the package, wherever the import stands."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    known = modules()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1], *(node.module or "").split(".")]).strip(".")
            base = base if node.level else node.module or ""
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield node.lineno, whole if whole in known else base


def edges() -> list[tuple[str, int, str]]:
    """Returns all imports within the package: who, at which line, imports what. The public face imports everything."""
    return [
        (name, line, other)
        for name, path in modules().items()
        if name != "adaptcache"
        for line, other in imports_of(name, path)
        if other.startswith("adaptcache.") and other != name
    ]


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_room_has_its_place() -> None:
    assert {room(name) for name in modules() if name != "adaptcache"} == set(HEIGHT)


def test_imports_lead_down_and_never_up_or_sideways() -> None:
    wrong = [
        f"{name}:{line} imports {other}"
        for name, line, other in edges()
        if room(name) != room(other)
        and HEIGHT[room(other)] >= HEIGHT[room(name)]
        and not {room(name), room(other)} <= set(VALUES)
    ]
    assert wrong == []


def test_no_two_rooms_import_each_other_and_no_modules_go_in_a_circle() -> None:
    rooms = {(room(a), room(b)) for a, _, b in edges() if room(a) != room(b)}
    assert [pair for pair in sorted(rooms) if pair[::-1] in rooms] == []
    below: dict[str, set[str]] = {}
    for name, _, other in edges():
        if room(name) in VALUES:
            below.setdefault(room(name), set()).add(room(other))
    done: list[str] = []
    while rest := [name for name in VALUES if name not in done]:
        free = [name for name in rest if not (below.get(name, set()) & set(rest)) - {name}]
        assert free, f"{rest} import each other in a circle"
        done += free


def test_the_reader_of_imports_sees_those_in_functions_and_for_type_checkers(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        "from ..files import a\nfrom .. import hub\nfrom . import schedule\n"
        "if TYPE_CHECKING:\n    from ..cli.show import b\n"
        "def f():\n    import adaptcache.tuning.tune\n    from .format import c\n"
    )
    found = {other for _, other in imports_of("adaptcache.schedule.x", path)}
    assert found == {
        "adaptcache.files", "adaptcache.hub", "adaptcache.schedule.schedule", "adaptcache.cli.show",
        "adaptcache.tuning.tune", "adaptcache.schedule.format",
    }  # fmt: skip


def test_only_the_diffusers_engine_knows_diffusers() -> None:
    # Besides: presets load pipelines, the command line names versions, baselines are diffusers' own, and one format.
    allowed = tuple(f"adaptcache.{name}" for name in (
        "engines.diffusers", "engines.formats.magcache", "presets", "cli", "comparison.baselines",
    ))  # fmt: skip
    found = {
        name
        for name, path in modules().items()
        for _, other in imports_of(name, path)
        if other.split(".")[0] == "diffusers" and not name.startswith(allowed)
    }
    assert found == set()


HEAVY = ("optuna", "sklearn", "matplotlib", "torchmetrics", "jinja2", "typer", "cache_dit")


@pytest.mark.parametrize("module", ["adaptcache", "adaptcache.runtime"])
def test_inference_imports_no_extra(module: str) -> None:
    code = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_mathematics_know_no_torch() -> None:
    code = (
        "import importlib.util, sys, types\n"
        "package = types.ModuleType('adaptcache'); package.__path__ = [sys.argv[1]]\n"
        "sys.modules['adaptcache'] = package\n"
        "import adaptcache.fitting.kernel, adaptcache.fitting.plan\n"
        "print('torch' in sys.modules)"
    )
    import adaptcache

    folder = str(adaptcache.__path__[0])
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


BLOCKED = """
import sys


class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("diffusers", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize(
    "names",
    [
        "adaptcache", "adaptcache.policies", "adaptcache.forecasts", "adaptcache.schedule.schedule",
        "adaptcache.schedule.methods", "adaptcache.runtime.runner", "adaptcache.calibration.match",
        "adaptcache.calibration.calibrate", "adaptcache.evaluation.evaluate", "adaptcache.engines.formats",
        "adaptcache.engines.comfyui.engine, adaptcache.engines.comfyui.apply",
        "adaptcache.fitting.kernel, adaptcache.fitting.plan, adaptcache.fitting.signals",
    ],
)  # fmt: skip
def test_it_works_where_diffusers_is_not_installed(names: str) -> None:
    code = (
        BLOCKED + f"import {names}\nimport adaptcache\nadaptcache.Schedule, adaptcache.Profile, adaptcache.calibrate"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr


def test_what_needs_diffusers_says_so_where_it_is_not_installed() -> None:
    code = BLOCKED + "import adaptcache\nadaptcache.attach"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode and "ImportError: attach needs diffusers: pip install" in done.stderr


def test_an_engine_of_forty_lines_is_calibrated_and_followed_without_diffusers() -> None:
    """`tests/euler.py` checks itself: from calibration on prompts to runs by the schedule."""
    code = BLOCKED + "import runpy\nrunpy.run_module('tests.euler', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    calls, error, evenly = map(float, done.stdout.split())
    assert calls == 6 and error < evenly / 4


@pytest.mark.parametrize("methods", [POLICIES, FORECASTS])
def test_a_method_has_a_file_of_its_own(methods: dict[str, type]) -> None:
    homes = [method.__module__ for method in methods.values()]
    assert len(homes) == len(set(homes))
