"""Python runs this at its start wherever this folder is on PYTHONPATH: it notes what is called.

The project's modules are compiled with one call more at the head of every function. Each process
appends lines `seconds<TAB>file<TAB>function` to a file of its own in the folder that
`PROMPT_PATH_NOTES` names. A profiler would miss the threads that Ray's C++ starts.
"""

from __future__ import annotations

import ast
import builtins
import os
import sys
import time
from collections.abc import Callable
from importlib.machinery import FileFinder, SourceFileLoader
from types import CodeType

FOLDER, ROOT = os.environ.get("PROMPT_PATH_NOTES"), os.environ.get("PROMPT_PATH_ROOT", "")
TOPS = tuple(os.path.join(ROOT, top) for top in ("rlhf_ray", "actors", "launch"))


class NotingLoader(SourceFileLoader):
    """Compiles a module so that its functions say that they are called."""

    def get_code(self, fullname: str) -> CodeType:
        """Never from a cache, which has the functions as they are written."""
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        file = os.path.relpath(path, ROOT)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                note = ast.parse(f"__note_call__({file!r}, {node.name!r})").body[0]
                has_docstring = ast.get_docstring(node) is not None
                node.body.insert(int(has_docstring), note)
        code: CodeType = compile(ast.fix_missing_locations(tree), path, "exec")
        return code


def finder(path: str) -> FileFinder:
    """For folders of the project alone."""
    if not path.startswith(TOPS) and path != ROOT:
        raise ImportError(path)
    return FileFinder(path, (NotingLoader, [".py"]))


def note_into(folder: str) -> Callable[[str, str], None]:
    """What every function calls."""
    out = open(os.path.join(folder, f"{os.getpid()}.tsv"), "a", buffering=1)  # noqa: SIM115

    def note(file: str, function: str) -> None:
        out.write(f"{time.time():.4f}\t{file}\t{function}\n")

    return note


if FOLDER:
    builtins.__note_call__ = note_into(FOLDER)  # type: ignore[attr-defined]
    sys.path_hooks.insert(0, finder)
