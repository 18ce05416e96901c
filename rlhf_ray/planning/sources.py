"""Where a model's `config.json` is: in its folder, in the hub's cache, or in a file that is given.

Nothing is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_ray.config.checks.references import is_hub_name
from rlhf_ray.errors import ConfigError
from rlhf_ray.models.shape import ModelShape, read_shape


def read_shapes(paths: Mapping[str, str], given: Sequence[str]) -> dict[str, ModelShape]:
    """The shape of every model that is loaded, by its path.

    Args:
        paths: Of the models, by the keys that name them.
        given: `FILE` for the only model that is not on this disk, or `MODEL=FILE`.

    Raises:
        ConfigError: A model is neither on this disk nor given, or cannot be read.
    """
    files = _given_files(given, set(paths.values()))
    shapes: dict[str, ModelShape] = {}
    for key, path in paths.items():
        if path not in shapes:
            shapes[path] = read_shape(files.get(path) or _on_disk(key, path))
    return shapes


def _given_files(given: Sequence[str], wanted: set[str]) -> Mapping[str, Path]:
    files = {}
    for one in given:
        path, equals, file = one.rpartition("=")
        path = os.path.expanduser(path)
        if equals and path not in wanted:
            raise ConfigError(
                f"--model-config names {path!r}, which is not loaded; "
                f"{', '.join(sorted(wanted))} would be"
            )
        absent = sorted(path for path in wanted if _found(path) is None)
        if not equals and len(absent) > 1:
            raise ConfigError(
                f"--model-config {file} could be of {' or '.join(absent)}: "
                f"write --model-config {absent[0]}={file}, and the same for each other"
            )
        files[path if equals else (absent or sorted(wanted))[0]] = Path(file).expanduser()
    return files


def _on_disk(key: str, path: str) -> Path:
    found = _found(path)
    if found is not None:
        return found
    if is_hub_name(path):
        raise ConfigError(
            f"{key} is {path!r}, which is not on this disk: its config.json alone is needed; "
            f"get it with `hf download {path} config.json`, or name such a file with "
            "--model-config FILE"
        )
    raise ConfigError(
        f"{key} is {path!r}, where no config.json is; where the job is to make that model first, "
        "name one like it with --model-config FILE"
    )


def _found(path: str) -> Path | None:
    folder = Path(path)
    if (folder / "config.json").is_file():
        return folder
    cached = _cache() / f"models--{path.replace('/', '--')}" / "snapshots"
    return max(cached.glob("*/config.json"), key=lambda file: file.stat().st_mtime, default=None)


def _cache() -> Path:
    """As huggingface_hub finds it."""
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    return Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")).expanduser()
