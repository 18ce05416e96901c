"""Finding what users wrote (a reward function, an environment) by its import path.

It is in a module, or in a file of theirs.

`/a/rewards.py` and `/b/rewards.py` may each say `import helpers` and mean the file beside them;
with folders on `sys.path` the second would get the first one's. So every folder's modules live
under a package of their own, and a module's absolute imports look there first: a module's
`__import__` decides what its `import` statements mean, also those that run later.
"""

from __future__ import annotations

import builtins
import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, ClassVar

from rlhf_ray.errors import ConfigError

_PREFIX = "_user_files_"


def load_function(path: str) -> Callable[..., Any]:
    """Load the reward function `package.module:function` or `path/to/file.py:function`.

    Raises:
        ConfigError: No such module, file or function, or it fails to import; a function's nearest
            name is given.
    """
    function = load_callable(path, what="reward function")
    if inspect.isclass(function):
        name = path.rpartition(":")[2]
        raise ConfigError(
            f"reward function {path!r} is a class; name an instance, {name.lower()} = {name}()"
        )
    return function


def load_callable(path: str, *, what: str) -> Callable[..., Any]:
    """Load a function or class by its path; `what` it is to be says an error.

    Raises:
        ConfigError: As for `load_function`.
    """
    source, colon, name = path.rpartition(":")
    if not (source and colon and name):
        raise ConfigError(
            f"the {what} must be given as package.module:function or path/to/file.py:function, "
            f"got {path!r}"
        )
    try:
        module = _load_file(Path(source)) if source.endswith(".py") else _load_module(source)
    except ConfigError as error:
        raise ConfigError(f"{what} {path!r}: {error}") from error
    # The user's module runs here, and may raise anything.
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{what} {path!r}: importing {source} raised {type(error).__name__}: {error}"
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        nearest = difflib.get_close_matches(name, functions, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"functions there: {functions}"
        raise ConfigError(f"{what} {path!r}: {source} has no function {name!r}; {hint}")
    loaded: Callable[..., Any] = found
    return loaded


def _load_module(name: str) -> ModuleType:
    top = name.partition(".")[0]
    here = os.getcwd()
    # A command that was installed does not look for modules where it is called; users expect it.
    if here not in sys.path and top and PathFinder.find_spec(top) is None:
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A module missing from inside the user's module is another matter: that one has its name.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(
            f"no module {name!r} ({error.name!r} was not found on the import path); a file that is "
            "not installed is given as path/to/file.py:function"
        ) from error


def _load_file(path: Path) -> ModuleType:
    """The module of a Python file, run once in this process.

    It may import the files and packages beside it by their names, and, where it belongs to a
    package, that package by its own and by relative imports. Python's own modules go first.
    """
    path = path.expanduser().resolve()
    if not path.is_file():
        raise ConfigError(f"no file {str(path)!r}")
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
    """Finds modules below the packages of `_load_file`.

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
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": _import_in(package)}
        super().exec_module(module)


def _import_in(package: str) -> Callable[..., ModuleType]:
    """What `import` means in the modules of one package."""

    def is_neighbour(top: str) -> bool:
        if top in sys.stdlib_module_names:
            return False
        spec = PathFinder.find_spec(f"{package}.{top}", _Finder.folders[package])
        # A folder without code, such as one of data, must not hide a library of its name.
        return spec is not None and spec.origin is not None

    def import_module(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> ModuleType:
        top = name.partition(".")[0]
        if level or not is_neighbour(top):
            return builtins.__import__(name, globals, locals, fromlist, level)
        module = builtins.__import__(f"{package}.{name}", globals, locals, fromlist, 0)
        return module if fromlist else sys.modules[f"{package}.{top}"]

    return import_module
