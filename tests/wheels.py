"""Modules of engines that are not installed: their own files, and stand-ins for all else that they import.

The wheels are on the path (`make contracts`), and nothing they need. Named modules are executed from the wheels'
own files; any other module of them, and of the libraries they need, is a stand-in whose names can be called, indexed,
used as decorators and as base classes.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


class Base:
    """What a class that comes from a stand-in comes from."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __init_subclass__(cls, **_: Any) -> None:
        pass


class Anything:
    """Whatever is done with it gives another one; what it decorates stays as it is."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and not kwargs and callable(args[0]) else Anything()

    def __mro_entries__(self, bases: Any) -> tuple[type]:
        return (type("Base", (Base,), {}),)

    def __getitem__(self, item: Any) -> Any:
        return self

    def __or__(self, other: Any) -> Any:
        return self

    __ror__ = __or__

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __bool__(self) -> bool:
        return False

    def __instancecheck__(self, value: Any) -> bool:
        return False

    def __lt__(self, other: Any) -> bool:
        return False

    __gt__ = __le__ = __ge__ = __lt__


class StandIn(ModuleType):
    """A module that has every name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = Anything()
        setattr(self, name, found)
        return found


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds stand-ins for the modules below some names, but for those that are to be true."""

    def __init__(self, roots: tuple[str, ...], true: tuple[str, ...]) -> None:
        self.roots, self.true = roots, true

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.split(".")[0] not in self.roots or name in self.true:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> ModuleType:
        module = StandIn(spec.name)
        places = importlib.machinery.PathFinder.find_spec(spec.name.split(".")[0])
        roots = list(getattr(places, "submodule_search_locations", None) or [])
        module.__path__ = [f"{root}/{'/'.join(spec.name.split('.')[1:])}".rstrip("/") for root in roots]
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def only(roots: tuple[str, ...], true: tuple[str, ...]) -> Iterator[list[ModuleType]]:
    """Imports the true modules, and forgets all below the roots in the end."""
    finder = Finder(roots, true)
    sys.meta_path.insert(0, finder)
    try:
        yield [importlib.import_module(name) for name in true]
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[0] in roots]:
            del sys.modules[name]
