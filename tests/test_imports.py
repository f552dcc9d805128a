"""What inference imports, and nothing more."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
