"""Importing a user's file with its neighbours, apart from the neighbours of other such files.

`/a/rewards.py` and `/b/rewards.py` may each say `import helpers` and mean the file beside them;
with folders on `sys.path` the second would get the first one's. So every folder's modules live
under a package of their own, and a module's absolute imports look there first: a module's
`__import__` decides what its `import` statements mean, also those that run later.
"""

from __future__ import annotations

import builtins
import importlib
import sys
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, ClassVar

_PREFIX = "_user_files_"


def import_file(path: Path) -> ModuleType:
    """The module of a Python file, run once in this process.

    It may import the files and packages beside it by their names, and, where it belongs to a
    package, that package by its own and by relative imports. Python's own modules go first.

    Args:
        path: Absolute.
    """
    root = path.parent
    inside = [path.stem.replace(".", "_")]
    while (root / "__init__.py").is_file():
        inside.insert(0, root.name)
        root = root.parent
    folders = tuple(dict.fromkeys((str(root), str(path.parent))))
    package = _PREFIX + sha256("\0".join(folders).encode()).hexdigest()[:16]
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    name = ".".join((package, *inside))
    _Finder.folders[package] = folders
    _Finder.files[name] = path
    return importlib.import_module(name)


def forget_files() -> None:
    """Let files be read anew: a process may serve many jobs, and users edit between them."""
    for name in [name for name in sys.modules if name.startswith(_PREFIX)]:
        del sys.modules[name]
    importlib.invalidate_caches()


class _Finder(MetaPathFinder):
    """Finds modules below the packages of `import_file`.

    Attributes:
        folders: Of each package.
        files: Those that were asked for by path, whose names need not be identifiers.
    """

    folders: ClassVar[dict[str, tuple[str, ...]]] = {}
    files: ClassVar[dict[str, Path]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As `PathFinder` does, but with a loader whose modules know their neighbours."""
        if not fullname.startswith(_PREFIX):
            return None
        if fullname in self.folders:
            package = ModuleSpec(fullname, None, is_package=True)
            package.submodule_search_locations = list(self.folders[fullname])
            return package
        if fullname in self.files:
            location = str(self.files[fullname])
            return ModuleSpec(fullname, _Loader(fullname, location), origin=location)
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(fullname, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        """Compile it, without a cache: that may be stale for a second, and is not ours to write."""
        code: CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code

    def exec_module(self, module: ModuleType) -> None:
        """Run the module with an `__import__` of its own."""
        module.__file__ = self.path
        package = module.__name__.partition(".")[0]
        vars(module)["__builtins__"] = {
            **vars(builtins),
            "__import__": _Import(package=package),
        }
        super().exec_module(module)


class _Import:
    """What `import` means in the modules of one package."""

    def __init__(self, *, package: str) -> None:
        self._package = package

    def __call__(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> ModuleType:
        top = name.partition(".")[0]
        if level or not self._is_neighbour(top):
            return builtins.__import__(name, globals, locals, fromlist, level)
        module = builtins.__import__(f"{self._package}.{name}", globals, locals, fromlist, 0)
        return module if fromlist else sys.modules[f"{self._package}.{top}"]

    def _is_neighbour(self, top: str) -> bool:
        if top in sys.stdlib_module_names:
            return False
        spec = PathFinder.find_spec(f"{self._package}.{top}", _Finder.folders[self._package])
        # A folder without code, such as one of data, must not hide a library of its name.
        return spec is not None and spec.origin is not None
