"""Modules and names that have moved stay importable under their old names for one version.

Using an old name emits a ``DeprecationWarning``.
"""

import sys
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


class MovedModules(MetaPathFinder, Loader):
    """Redirects the import of an old name to the module under its new name; both names give the same module."""

    def __init__(self, new_names: Mapping[str, str]) -> None:
        self.new_names = new_names

    def find_spec(self, fullname: str, *_path_and_target: object) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in self.new_names else None

    def exec_module(self, module: ModuleType) -> None:
        new = self.new_names[module.__name__]
        _warn(module.__name__, new)
        sys.modules[module.__name__] = import_module(new)


def keep_old_names(package: str, rooms: Mapping[str, str]) -> None:
    """Keep the modules of ``package`` importable under their old names.

    Args:
        package: the package that contained the modules, such as ``simclr_core``.
        rooms: sub-package → old names of its modules; ``old:new`` for a module that was also renamed.
    """
    pairs = ((room, *name.split(":")) for room, names in rooms.items() for name in names.split())
    table = {f"{package}.{old}": f"{package}.{room}.{(new or [old])[0]}" for room, old, *new in pairs}
    sys.meta_path.append(MovedModules(table))


def names_of(module: str, was: str | None = None) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for a package or module whose names are now in ``module``.

    Args:
        was: the old name of ``module``; by default that of its package.
    """
    package = was or module.rpartition(".")[0]

    def get(name: str) -> Any:
        own = name.startswith("__") or find_spec(f"{package}.{name}") is not None  # modules of the package come first
        value = None if own else getattr(import_module(module), name, None)
        if value is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        _warn(f"{package}.{name}", f"{module}.{name}")
        return value

    return get


def renamed(module: str, new_names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for ``module`` that serves old names of its functions (old name → new name)."""

    def get(name: str) -> Any:
        if name not in new_names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        _warn(f"{module}.{name}", f"{module}.{new_names[name]}")
        return getattr(import_module(module), new_names[name])

    return get


def keep_callable(module: str) -> None:
    """Let ``module``, which now has the name that its main function had in its package, be called as that function."""
    name = module.rpartition(".")[2]

    def call(self: ModuleType, *arguments: Any, **named: Any) -> Any:
        _warn(f"{module}()", f"{module}.{name}()")
        return getattr(self, name)(*arguments, **named)

    sys.modules[module].__class__ = type("CallableModule", (ModuleType,), {"__call__": call})


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is now {new}; the next version removes the old name", DeprecationWarning, stacklevel=3)
