"""The folder that goes along with a submitted job: its files, and what paths they have to hold."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from pathspec import GitIgnoreSpec

from rlhf_ray.config.checks.data_files import fixed_part
from rlhf_ray.config.checks.references import hub_dataset
from rlhf_ray.config.models import CHAT_TEMPLATE_NAMES
from rlhf_ray.config.tools.layers import texts
from rlhf_ray.config.tools.problems import KeyPath, Problem
from rlhf_ray.config.tools.stages import PREFIX
from rlhf_ray.errors import ConfigError

# What no job reads, as `.gitignore` would say it: histories, environments, caches, results, logins.
JUNK = GitIgnoreSpec.from_lines(
    [
        *(".git", ".hg", ".svn", ".venv", "venv", "__pycache__", ".ipynb_checkpoints"),
        *(".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis", ".import_linter_cache"),
        *("node_modules", "runs", "wandb", ".cache", ".DS_Store"),
        *(".env", ".env.*", ".netrc", ".git-credentials", ".aws", ".ssh", ".gnupg", ".kube"),
        *(".azure", ".config", ".docker", ".ray", "id_rsa", "id_ed25519"),
    ]
)
# Every node gets a copy, by way of the head's memory; Ray's dashboard takes no more at once.
MAX_BYTES = 100 * 2**20
EPOCH = (1980, 1, 1, 0, 0, 0)
PATH_KEYS = ("path", "tokenizer", "chat_template", "nvme_path")


def shipped_files(folder: Path) -> list[str]:
    """The files of a folder without junk and without what `.gitignore` names, relative to it.

    Raises:
        ConfigError: There is no such folder, or more in it than can be sent.
    """
    if not folder.is_dir():
        raise ConfigError(f"--working-dir: no such folder: {str(folder)!r}")
    files = sorted(_files(folder, folder, ()))
    sizes = {file: (folder / file).stat().st_size for file in files}
    total = sum(sizes.values())
    if total > MAX_BYTES:
        largest = sorted(files, key=lambda file: -sizes[file])[:3]
        named = ", ".join(f"{file} ({sizes[file] / 2**20:.1f} MiB)" for file in largest)
        raise ConfigError(
            f"--working-dir {folder} holds {total / 2**20:.0f} MiB in {len(files)} files; at most "
            f"{MAX_BYTES // 2**20} MiB are sent. The largest: {named}. Name what is not needed in "
            ".gitignore, and put models and data where every node sees them"
        )
    return files


def _files(
    root: Path, folder: Path, ignored: Sequence[tuple[Path, GitIgnoreSpec]]
) -> Iterator[str]:
    own = folder / ".gitignore"
    if own.is_file():
        lines = own.read_text(encoding="utf-8", errors="replace").splitlines()
        ignored = (*ignored, (folder, GitIgnoreSpec.from_lines(lines)))
    for entry in os.scandir(folder):
        path = Path(entry.path)
        is_folder = entry.is_dir(follow_symlinks=False)
        if JUNK.match_file(entry.name) or _is_ignored(path, is_folder, ignored):
            continue
        if is_folder:
            yield from _files(root, path, ignored)
        elif entry.is_file():
            yield path.relative_to(root).as_posix()


def _is_ignored(path: Path, is_folder: bool, ignored: Sequence[tuple[Path, GitIgnoreSpec]]) -> bool:
    mark = "/" if is_folder else ""
    return any(spec.match_file(path.relative_to(base).as_posix() + mark) for base, spec in ignored)


def write_package(folder: Path, files: Sequence[str], archive: Path) -> None:
    """Pack files; the same ones give the same bytes, which the cluster then knows already."""
    with ZipFile(archive, "w", ZIP_DEFLATED) as package:
        for file in files:
            info = ZipInfo(file, EPOCH)
            info.compress_type = ZIP_DEFLATED
            info.external_attr = ((folder / file).stat().st_mode & 0xFFFF) << 16
            package.writestr(info, (folder / file).read_bytes())


def find_missing(values: Mapping[str, Any], shipped: Collection[str] | None) -> list[Problem]:
    """Relative paths that lead nowhere with the `shipped` files alone; None where none go along."""
    problems = []
    for path, text in _relative(values):
        if shipped is None:
            message = (
                f"{text!r} is relative to a folder that the cluster does not have: send it along "
                "by --working-dir, or give the path that it has on the cluster's nodes"
            )
        elif not _is_there(text, shipped):
            message = (
                f"{text!r} is not among the files of --working-dir that are sent (runs, caches "
                "and what git ignores stay here): give the path that it has on the cluster's nodes"
            )
        else:
            continue
        problems.append(Problem(path=path, message=message))
    return problems


def _is_there(text: str, shipped: Collection[str]) -> bool:
    wanted = str(PurePosixPath(fixed_part(text)))  # of a pattern, the folder that it searches
    return wanted in (".", *shipped) or any(file.startswith(f"{wanted}/") for file in shipped)


def _relative(values: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Every relative path of files, with its key."""
    for path, value in texts(values):
        text = value.rpartition(":")[0] if "functions" in path else value
        is_path = path[-1] in PATH_KEYS and text and _names_files(text, path)
        if is_path and not text.startswith(("/", "~", PREFIX)):
            yield path, text


def _names_files(text: str, path: KeyPath) -> bool:
    if "functions" in path:
        return text.endswith(".py")  # else a module, which is imported
    if path[-1] == "chat_template":
        return text not in CHAT_TEMPLATE_NAMES and "{" not in text
    return hub_dataset(text) is None
