"""Splits of local data, as `datasets` sees them: expressions, and which files belong to which.

An expression is one of `train`, `train[:500]`, `train[10%:20%]`. Of a folder, what a README of the
hub's form says comes first, then names: `data/train-00000-of-00002.parquet`, folders such as
`test/`, files such as `train.jsonl` and `gsm8k_test.json`. Folders that `save_to_disk` wrote say it
themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from rlhf_ray.errors import DataError

_BOUND = r"(-?\d+%?)?"
_PART = re.compile(rf"(?P<name>\w+(\.\w+)*)(\[(?P<start>{_BOUND}):(?P<stop>{_BOUND})\])?")
Splits: TypeAlias = dict[str, list[Path]]

SAVED_SET, SAVED_SETS = "state.json", "dataset_dict.json"
_SHARD = re.compile(r"data/(?P<split>\w+(\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]*")


@dataclass(frozen=True, kw_only=True)
class RowRange:
    """Some rows of a split; a bound is a number of rows or, with `%`, a share of them.

    Example: `RowRange(split="train", start="10%", stop="-50")`. An empty bound is the split's own.
    """

    split: str
    start: str
    stop: str

    @property
    def needs_count(self) -> bool:
        """Whether it takes the number of all rows to tell which these are."""
        bounds = (self.start, self.stop)
        return any(bound.startswith("-") or bound.endswith("%") for bound in bounds)

    def resolve(self, num_rows: int) -> tuple[int, int]:
        """First row, and the one after the last; `num_rows` is not used without `needs_count`."""
        return (
            _absolute(self.start, num_rows) if self.start else 0,
            _absolute(self.stop, num_rows) if self.stop else num_rows,
        )


def parse_split(split: str) -> list[RowRange]:
    """The ranges of a local data set, which follow one another; a name alone is all of a split.

    Raises:
        DataError: Not an expression, or a share beyond 100 %.
    """
    ranges = []
    for part in split.split("+"):
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise DataError(
                "split must be like train, train[:500], train[10%:20%], train[-50:] or several "
                f"of them joined by '+', got {split!r}"
            )
        bounds = (match["start"] or "", match["stop"] or "")
        if any(bound.endswith("%") and abs(int(bound[:-1])) > 100 for bound in bounds):
            raise DataError(f"a share in split must be at most 100%, got {split!r}")
        ranges.append(RowRange(split=match["name"], start=bounds[0], stop=bounds[1]))
    return ranges


def _absolute(bound: str, num_rows: int) -> int:
    share = bound.endswith("%")
    row = round(int(bound[:-1]) * num_rows / 100) if share else int(bound)
    return max(0, row + num_rows) if bound.startswith("-") else row


def saved_splits(folder: Path) -> Splits:
    """Files of a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote, in order.

    Empty for any other folder. One data set alone is the split `train`.

    Raises:
        DataError: What describes them cannot be read.
    """
    if (folder / SAVED_SETS).is_file():
        names = _described(folder / SAVED_SETS, "splits")
        return {str(name): _saved_files(folder / str(name)) for name in names}
    return {"train": _saved_files(folder)} if (folder / SAVED_SET).is_file() else {}


def _saved_files(folder: Path) -> list[Path]:
    entries = _described(folder / SAVED_SET, "_data_files")
    try:
        return [folder / entry["filename"] for entry in entries]
    except (TypeError, KeyError) as error:
        raise DataError(f"{folder / SAVED_SET}: files must have a filename: {error!r}") from error


def _described(file: Path, key: str) -> list[Any]:
    try:
        listed = json.loads(file.read_text("utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: it must hold {key!r}, as save_to_disk writes it ({error!r})"
        ) from error
    if not isinstance(listed, list):
        raise DataError(f"{file}: {key!r} must be a list, got {type(listed).__name__}")
    return listed


def named_splits(folder: Path, files: Sequence[Path]) -> Splits:
    """The data files of a folder by split, as README or names say; empty where neither names one.

    Raises:
        DataError: The README cannot be read, names what is not there, or has several subsets of
            which none is the default.
    """
    by_name = {file.relative_to(folder).as_posix(): file for file in files}
    subset = _default_subset(folder / "README.md")
    if within := str(subset.get("data_dir") or "").removeprefix("./").strip("/"):
        start = f"{within}/"
        by_name = {
            name.removeprefix(start): file
            for name, file in by_name.items()
            if name.startswith(start)
        }
    if "data_files" in subset:
        return _splits_by_pattern(by_name, subset["data_files"], folder / "README.md")
    return _splits_by_name(by_name) or ({"train": list(by_name.values())} if within else {})


def _splits_by_pattern(by_name: Mapping[str, Path], data_files: Any, readme: Path) -> Splits:
    from datasets.data_files import sanitize_patterns

    patterns = sanitize_patterns(data_files)
    found = {split: _matched(by_name, each) for split, each in patterns.items()}
    if missing := [split for split, matched in found.items() if not matched]:
        raise DataError(
            f"{readme}: the split {missing[0]!r} is to be in {patterns[missing[0]]}, and no data "
            "file here has such a name"
        )
    return found


def _splits_by_name(by_name: Mapping[str, Path]) -> Splits:
    from datasets.data_files import ALL_DEFAULT_PATTERNS, DEFAULT_PATTERNS_ALL

    shards: Splits = {}
    for name, file in by_name.items():
        if match := _SHARD.fullmatch(name):
            shards.setdefault(match["split"], []).append(file)
    if shards:
        return shards
    for patterns in ALL_DEFAULT_PATTERNS:
        if patterns is not DEFAULT_PATTERNS_ALL:
            found = {str(split): _matched(by_name, each) for split, each in patterns.items()}
            if any(found.values()):
                return {split: matched for split, matched in found.items() if matched}
    return {}


def _matched(by_name: Mapping[str, Path], patterns: Sequence[str]) -> list[Path]:
    from fsspec.utils import glob_translate

    any_of = [re.compile(glob_translate(pattern.removeprefix("./"))) for pattern in patterns]
    return [file for name, file in by_name.items() if any(one.match(name) for one in any_of)]


def _default_subset(readme: Path) -> Mapping[str, Any]:
    """What a README says of the subset that `datasets` takes if none is named."""
    if not readme.is_file() or not readme.read_text("utf-8", "replace").startswith("---"):
        return {}
    import yaml
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard

    try:
        subsets = MetadataConfigs.from_dataset_card_data(DatasetCard.load(readme).data)
        default = subsets.get_default_config_name()
    except (ValueError, TypeError, yaml.YAMLError) as error:
        [message, *_] = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{readme}: what stands before its text is wrong: {message}") from error
    if default is not None:
        subset: Mapping[str, Any] = subsets[default]
        return subset
    if subsets:
        raise DataError(
            f"{readme}: the folder has several data sets ({', '.join(subsets)[:300]}): name the "
            "files of one, such as path: FOLDER/SUBSET/train-*.parquet"
        )
    return {}
