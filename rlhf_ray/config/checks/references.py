"""Does what a configuration points at exist? Files, model folders, functions; nothing is imported.

Every check returns None, or what is wrong in words.
"""

from __future__ import annotations

import ast
import difflib
import glob
import importlib.util
import os
import re
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from rlhf_ray.config.checks.data_files import (
    DATA_FILES,
    DATA_SUFFIXES,
    GENERATED,
    data_format,
    files_below,
    files_matching,
    is_data_file,
)
from rlhf_ray.config.checks.model_files import weights_fault

# With an owner, or one of the oldest, such as gpt2 and imdb, which have none, nor dots.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*|[A-Za-z0-9][\w-]*")
_SUBSET = re.compile(r"[\w.-]+")
_NOWHERE = "no such folder, and no hub name (org/name, or a name without dots)"
NEEDS_REASONING_GYM = (
    "needs the package reasoning-gym; install it, or rlhf-ray with its extra reasoning"
)
# Where the shipped configurations look, and whence it comes.
_ORIGINS = {
    "runs/demo": "`make demo` writes it",
    "../shared/data": "set RLHF_RAY_DATA to the folder that has it",
}


def is_hub_name(path: str) -> bool:
    """Whether `path` can only be a name on the hub.

    That is `org/name` where no folder `org` is here, or `name`, without a dot, where no such folder
    is.
    """
    return bool(_HUB_NAME.fullmatch(path)) and not Path(path.split("/")[0]).is_dir()


def hub_dataset(path: str) -> tuple[str, str | None] | None:
    """Name and subset of a data set on the hub (`openai/gsm8k:main`); None for any other path."""
    name, colon, subset = path.partition(":")
    if not is_hub_name(name) or name.endswith(DATA_SUFFIXES):
        return None
    if not colon:
        return name, None
    return (name, subset) if _SUBSET.fullmatch(subset) else None


def origin(path: str) -> str:
    """Whence a path comes that the shipped configurations name, to be said where it is absent."""
    origins = (text for place, text in _ORIGINS.items() if Path(path).is_relative_to(place))
    return "".join(f"; {text}" for text in origins)


def model_fault(path: str) -> str | None:
    """A folder in the transformers layout, or a hub name."""
    folder = Path(path)
    if not folder.exists():
        return None if is_hub_name(path) else f"{_NOWHERE}: {path!r}{origin(path)}"
    if not folder.is_dir():
        return f"must be a folder in the transformers layout, got the file {path!r}"
    if not (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        return f"folder {path!r} holds no config.json"
    return weights_fault(folder)


def tokenizer_fault(path: str) -> str | None:
    """A folder with a tokenizer, or a hub name."""
    if Path(path).is_dir():
        found = any(Path(path).glob("tokenizer*"))
        return None if found else f"folder {path!r} holds no tokenizer"
    return None if is_hub_name(path) else f"{_NOWHERE}: {path!r}{origin(path)}"


def data_fault(path: str) -> str | None:
    """A readable file that is not empty, a folder with data files, a pattern, or a hub name."""
    if path.startswith(GENERATED):
        is_there = importlib.util.find_spec("reasoning_gym") is not None
        return None if is_there else NEEDS_REASONING_GYM
    place = Path(path).expanduser()
    try:
        if place.is_dir():
            found = any(map(is_data_file, files_below(place)))
            return None if found else f"folder {path!r} holds no data file; wanted {DATA_FILES}"
        if not place.exists() and glob.has_magic(path):
            found = any(map(is_data_file, files_matching(str(place))))
            return None if found else f"no data file matches {path!r}; wanted {DATA_FILES}"
    except OSError as error:
        return f"cannot be read: {error.filename!r} ({error.strerror})"
    if not place.exists():
        if hub_dataset(path) is not None:
            return None
        here = f"(working directory {os.getcwd()})"
        return f"no such file or folder: {path!r} {here}{origin(path)}"
    if not os.access(place, os.R_OK):
        return f"cannot be read: {path!r}"
    if not data_format(place.name):
        return f"must be {DATA_FILES}, got {path!r}"
    if not place.is_file():
        return f"must be a file or a folder, got {path!r}"
    return f"{path!r} is empty" if place.stat().st_size == 0 else None


def function_fault(path: str) -> str | None:
    """`package.module:function` or `file.py:function`, found without running it."""
    place, colon, function = path.rpartition(":")
    if not colon or not function.isidentifier():
        return f"must be package.module:function or file.py:function, got {path!r}"
    source = _source(place)
    if source is None:
        return f"no such file: {place!r}" if place.endswith(".py") else f"no module {place!r}"
    if source.suffix != ".py":  # an extension module can only be asked by importing it
        return None
    return _name_fault(source, function)


def says(path: str, word: str) -> bool:
    """Whether the source of `package.module:function` or `file.py:function` has a word."""
    source = _source(path.rpartition(":")[0])
    return source is not None and source.suffix == ".py" and word in source.read_text("utf-8")


def required_arguments(path: str) -> list[str]:
    """What `package.module:function` or `file.py:function` must be given, found without running it.

    None of it where the source does not tell: a class, a decorated function, one from elsewhere.
    """
    place, _, name = path.rpartition(":")
    source = _source(place)
    if source is None or source.suffix != ".py":
        return []
    for statement in ast.parse(source.read_text(encoding="utf-8")).body:
        if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if statement.name == name and not statement.decorator_list:
            taken = statement.args
            anywhere = [*taken.posonlyargs, *taken.args]
            required = anywhere[: len(anywhere) - len(taken.defaults)]
            by_keyword = zip(taken.kwonlyargs, taken.kw_defaults, strict=True)
            required += [each for each, default in by_keyword if default is None]
            return [each.arg for each in required]
    return []


def _source(place: str) -> Path | None:
    """The file of a module or of `file.py`, found without running it."""
    if place.endswith(".py"):
        file = Path(place).expanduser()
        return file if file.is_file() else None
    spec = _find_module(place)
    return None if spec is None else Path(spec.origin or "")


def _find_module(name: str) -> ModuleSpec | None:
    """Like `importlib.util.find_spec`, which would import the parent packages."""
    top, *below = name.split(".")
    try:
        spec = importlib.util.find_spec(top) or PathFinder.find_spec(top, [os.getcwd()])
    except (ImportError, ValueError):
        return None
    for depth in range(len(below)):
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(
            ".".join([top, *below[: depth + 1]]), list(spec.submodule_search_locations)
        )
    return spec


def _name_fault(source: Path, function: str) -> str | None:
    try:
        tree = ast.parse(source.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        return f"{source} is not Python: {error}"
    names = {name for statement in tree.body for name in _bound_names(statement)}
    if function in names or "*" in names:
        return None
    near = difflib.get_close_matches(function, names, n=1)
    return f"{source} defines no {function!r}" + (f", did you mean {near[0]!r}?" if near else "")


def _bound_names(statement: ast.stmt) -> list[str]:
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return [statement.name]
        case ast.Assign():
            return [target.id for target in statement.targets if isinstance(target, ast.Name)]
        case ast.Import() | ast.ImportFrom():
            return [alias.asname or alias.name for alias in statement.names]
    return []
