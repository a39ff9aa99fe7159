"""Modules that have moved stay importable under their old names for one version, with a ``DeprecationWarning``."""

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
    """Leads an import of an old name to the module under its new name; both are then the same module."""

    def __init__(self, new_names: Mapping[str, str]) -> None:
        self.new_names = new_names

    def find_spec(self, fullname: str, *_path_and_target: object) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in self.new_names else None

    def exec_module(self, module: ModuleType) -> None:
        new = self.new_names[module.__name__]
        _warn(module.__name__, new)
        sys.modules[module.__name__] = import_module(new)


def keep_old_names(package: str, rooms: Mapping[str, str]) -> None:
    """Keep the modules of ``package`` that now live in ``rooms`` importable.

    Args:
        package: the package that the modules used to be in, such as ``simclr_core``.
        rooms: sub-package → old names of its modules; ``old:new`` where the module has another name now.
    """
    pairs = ((room, *name.split(":")) for room, names in rooms.items() for name in names.split())
    table = {f"{package}.{old}": f"{package}.{room}.{(new or [old])[0]}" for room, old, *new in pairs}
    sys.meta_path.append(MovedModules(table))


def names_of(module: str, was: str | None = None) -> Callable[[str], Any]:
    """A ``__getattr__`` for what has taken the name of a module, or the rest of it; its names are now in ``module``.

    ``was`` is the name that it had; by default that of the package of ``module``.
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


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is now {new}; the old name goes away in the next version", DeprecationWarning, stacklevel=3)
