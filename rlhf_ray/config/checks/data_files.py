"""Files of data: their names, and which of them lie in a folder or match a pattern.

The check before a start and the reader of rows find the same ones.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePath

TEXT_FORMATS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt")
ARROW_FORMATS = (".parquet", ".arrow")  # these have compression of their own
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
DATA_SUFFIXES = TEXT_FORMATS + ARROW_FORMATS + COMPRESSIONS
DATA_FILES = (
    f"a {', '.join(TEXT_FORMATS[:-1])} or {TEXT_FORMATS[-1]} file (also with "
    f"{', '.join(COMPRESSIONS[:-1])} or {COMPRESSIONS[-1]}), a {' or '.join(ARROW_FORMATS)} file"
)
ACCEPTED = (
    f"{DATA_FILES}, a folder of such files, a pattern such as `data/*.jsonl`, or a name on the "
    "Hugging Face hub (`owner/name`, `name` or `owner/name:subset`)"
)
# In front of a task's name: rows that are made (`rlhf_ray/data/files/generated.py`).
GENERATED = "reasoning_gym:"
# These describe data and are none.
_DESCRIPTIONS = {
    "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json",
}  # fmt: skip


def data_format(name: str) -> str:
    """The suffix that says what a data file is, without that of a compression; empty for none."""
    path = PurePath(name.lower())
    if path.suffix in COMPRESSIONS:
        inner = path.with_suffix("").suffix
        return inner if inner in TEXT_FORMATS else ""
    return path.suffix if path.suffix in TEXT_FORMATS + ARROW_FORMATS else ""


def is_data_file(path: Path) -> bool:
    """Whether a file holds data, by its name."""
    is_named = bool(data_format(path.name)) and path.name not in _DESCRIPTIONS
    return is_named and not path.name.startswith(".") and not path.is_dir()


def fixed_part(pattern: str) -> str:
    """The folders of a pattern such as `data/*.jsonl` before its first wildcard."""
    parts = PurePath(pattern).parts
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), parts)
    return str(PurePath(*fixed))


def files_below(folder: Path) -> Iterator[Path]:
    """Files of a folder and its subfolders; none in what is hidden, nor in `__MACOSX` and the like.

    Links to folders are followed. A folder that several paths lead to is read once, by the path
    without links where there is one.

    Raises:
        OSError: A folder cannot be read.
    """
    seen: set[str] = set()
    linked = [folder]
    for start in linked:
        for place, folders, names in os.walk(start, onerror=_raise):
            real = os.path.realpath(place)
            folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            below = [Path(place, name) for name in folders]
            linked += [path for path in below if path.is_symlink()]
            yield from (Path(place, name) for name in names)


def files_matching(pattern: str) -> Iterator[Path]:
    """Files whose path matches; `**` stands for any folders, as `files_below` finds them.

    Raises:
        OSError: A folder cannot be read.
    """
    if "**" not in PurePath(pattern).parts:
        return map(Path, glob.iglob(pattern))
    from fsspec.utils import glob_translate

    # `glob` itself would follow a link that leads back up for ever.
    whole = re.compile(glob_translate(str(PurePath(pattern))))
    return (file for file in files_below(Path(fixed_part(pattern))) if whole.match(str(file)))


def _raise(error: OSError) -> None:
    raise error
