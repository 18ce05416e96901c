"""Does `gpu.lock` hold, and does the `gpu` extra resolve? `make lock-check` asks the package index.

Three questions, which need no GPU and download no wheel:

1. `pip install -e ".[gpu]"` finds versions that fit each other, on each Python of `PYTHONS`.
2. The lock has all that its packages require, in versions that they accept, and nothing else.
3. No two of its wheels bring different files to one place, where the last one unpacked would stay.

uv resolves by metadata alone, as pip would; `UV_DEFAULT_INDEX` names another index.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

from requirements.remote_wheel import Wheel, installed_files

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements/gpu.lock"
PYTHONS = ("3.11", "3.12")
# As docker/Dockerfile.gpu has it: Ubuntu 24.04.
LOCKED_PYTHON, GLIBC = "3.12", (2, 39)
_AT_ONCE = 16
# What some wheels carry by mistake and nothing imports: the script that built them.
UNUSED = frozenset({"build_backend.py"})


def main() -> int:
    """Print what holds and what does not; returns the exit status."""
    faults = []
    for python in PYTHONS:
        faults += [f"Python {python}: {fault}" for fault in _resolution_faults(python)]
    locked = versions_of(LOCK.read_text())
    try:
        wanted = versions_of(_compile("pyproject.toml", "--extra", "gpu", "-c", str(LOCK)))
        faults += lock_faults(locked, wanted)
    except subprocess.CalledProcessError as error:
        faults.append(f"gpu.lock contradicts itself: {error.stderr.strip()}")
    wheels = list(_wheels())
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        lists = list(pool.map(installed_files, wheels))
    files = {wheel.package: found for wheel, found in zip(wheels, lists, strict=True)}
    print(f"gpu.lock: {len(locked)} packages, {sum(map(len, lists))} files of {len(wheels)} wheels")
    for package in sorted(locked.keys() - files.keys()):
        print(
            f"  {package} has no wheel: it is built where it is installed, its files not compared"
        )
    faults += overlaps(files)
    for fault in faults:
        print(f"FAULT {fault}")
    print("the lock does not hold" if faults else "the lock holds")
    return 1 if faults else 0


def versions_of(lock: str) -> dict[str, str]:
    """The version of each package in lines of `name==version`."""
    pairs = re.findall(r"^([\w.-]+)==([^\s;]+)", lock, flags=re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pairs}


def lock_faults(locked: Mapping[str, str], wanted: Mapping[str, str]) -> Iterator[str]:
    """How a lock differs from what the project needs under its versions."""
    for name in sorted(wanted.keys() - locked.keys()):
        yield f"gpu.lock lacks {name} (such as {wanted[name]}), which its packages require"
    for name in sorted(locked.keys() - wanted.keys()):
        yield f"gpu.lock has {name}, which nothing in it requires"


def overlaps(files: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """The files that several packages bring and that differ, a line for each set of packages.

    Args:
        files: Checksum of each file of each package.
    """
    owners = defaultdict(list)
    for package in sorted(files):
        for file in files[package]:
            owners[file].append(package)
    shared = defaultdict(list)
    for file, packages in owners.items():
        if file not in UNUSED and len({files[package][file] for package in packages}) > 1:
            shared[tuple(packages)].append(file)
    for packages, same in sorted(shared.items()):
        yield f"{len(same)} files differ in {' and '.join(packages)}, such as {min(same)}"


def best_wheel(names: Iterable[str]) -> str | None:
    """Of the wheels of one version, by their file names, the one that pip takes."""
    ranks = {tag: rank for rank, tag in enumerate(_tags())}
    found = {
        min(ranks[tag] for tag in tags & ranks.keys()): name
        for name in names
        if (tags := parse_wheel_filename(name)[3]) & ranks.keys()
    }
    return found[min(found)] if found else None


def _tags() -> Iterator[Tag]:
    major, minor = (int(part) for part in LOCKED_PYTHON.split("."))
    platforms = [f"manylinux_{GLIBC[0]}_{n}_x86_64" for n in range(GLIBC[1], 4, -1)]
    # The older names of three of them.
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    platforms += ["linux_x86_64"]
    yield from cpython_tags((major, minor), platforms=platforms)
    yield from compatible_tags((major, minor), f"cp{major}{minor}", platforms)


def _wheels() -> Iterator[Wheel]:
    """The wheel of each locked package that has one."""
    text = _compile(str(LOCK), "--no-deps", file="pylock.toml")
    for package in tomllib.loads(text)["packages"]:
        wheels = {wheel["url"].rpartition("/")[2]: wheel for wheel in package.get("wheels", [])}
        name = best_wheel(wheels)
        if name is not None:
            wheel = wheels[name]
            yield Wheel(package=package["name"], url=wheel["url"], size=wheel["size"])


def _resolution_faults(python: str) -> Iterator[str]:
    try:
        found = versions_of(_compile("pyproject.toml", "--extra", "gpu", python=python))
    except subprocess.CalledProcessError as error:
        yield f"the gpu extra does not resolve: {error.stderr.strip()}"
        return
    print(f"Python {python}: the gpu extra resolves to {len(found)} packages")


def _compile(*arguments: str, python: str = LOCKED_PYTHON, file: str = "out.txt") -> str:
    """What uv resolves, as it writes it.

    Raises:
        subprocess.CalledProcessError: There is no solution; its `stderr` says why.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file
        platform = f"x86_64-manylinux_{GLIBC[0]}_{GLIBC[1]}"
        subprocess.run(
            [
                *(sys.executable, "-m", "uv", "pip", "compile", *arguments, "-q", "-o", str(path)),
                *("--python-version", python, "--python-platform", platform),
                *("--no-python-downloads", "--no-annotate"),
            ],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        return path.read_text()


if __name__ == "__main__":
    sys.exit(main())
