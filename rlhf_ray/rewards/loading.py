"""Finding a reward function by its import path."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from rlhf_ray.errors import ConfigError


def load_function(path: str) -> Callable[..., Any]:
    """Load `package.module:function` or `path/to/file.py:function`.

    Raises:
        ConfigError: No such module, file or function, or it fails to import; a function's nearest
            name is given.
    """
    source, colon, name = path.rpartition(":")
    if not (source and colon and name):
        raise ConfigError(
            "a reward function must be given as package.module:function or "
            f"path/to/file.py:function, got {path!r}"
        )
    try:
        module = _load_file(Path(source)) if source.endswith(".py") else _load_module(source)
    except ConfigError:
        raise
    # The user's module runs here, and may raise anything.
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"reward function {path!r}: importing {source} raised {type(error).__name__}: {error}"
        ) from error

    function = getattr(module, name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        nearest = difflib.get_close_matches(name, functions, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"functions there: {functions}"
        raise ConfigError(f"reward function {path!r}: {source} has no function {name!r}; {hint}")
    loaded: Callable[..., Any] = function
    return loaded


def _load_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A module missing from inside the user's module is another matter: that one has its name.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(
            f"no module {name!r} for a reward function ({error.name!r} was not found on the import "
            "path); a file that is not installed is given as path/to/file.py:function"
        ) from error


def _load_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise ConfigError(f"no file {str(path)!r} for a reward function")
    name = str(path.with_suffix("")).replace(".", "_")  # no dot: it is in no package
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up by name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
