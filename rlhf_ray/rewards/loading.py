"""Finding a reward function by its import path."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.files import import_file


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
    if inspect.isclass(function):
        raise ConfigError(
            f"reward function {path!r} is a class; name an instance, {name.lower()} = {name}()"
        )
    loaded: Callable[..., Any] = function
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
            f"no module {name!r} for a reward function ({error.name!r} was not found on the import "
            "path); a file that is not installed is given as path/to/file.py:function"
        ) from error


def _load_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise ConfigError(f"no file {str(path)!r} for a reward function")
    return import_file(path)
