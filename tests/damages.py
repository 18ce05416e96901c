"""What may happen to the files of a run on a disk, in a place and a way left to chance."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path


def flip(path: Path, chance: random.Random) -> None:
    """One bit."""
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def zero(path: Path, chance: random.Random) -> None:
    """Up to 40 bytes in a row."""
    data = bytearray(path.read_bytes())
    first = chance.randrange(len(data))
    data[first : first + 40] = bytes(len(data[first : first + 40]))
    path.write_bytes(data)


def cut(path: Path, chance: random.Random) -> None:
    """Its end is gone."""
    os.truncate(path, chance.randrange(path.stat().st_size))


def empty(path: Path, chance: random.Random) -> None:
    """It has no bytes."""
    os.truncate(path, 0)


def remove(path: Path, chance: random.Random) -> None:
    """It is gone."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def swap(path: Path, chance: random.Random) -> None:
    """With what stands in its place of another step, or with another segment."""
    if path.suffix == ".rollouts":
        others = sorted(path.parent.iterdir())
    else:
        step = next(folder for folder in (path, *path.parents) if "step_" in folder.name)
        others = [folder / path.relative_to(step) for folder in sorted(step.parent.iterdir())]
    if others := [one for one in others if one != path and one.exists()]:
        other, aside = chance.choice(others), path.with_name("aside")
        path.rename(aside)
        other.rename(path)
        aside.rename(other)


def damage(run_dir: Path, chance: random.Random) -> list[str]:
    """Damage one or two parts of what a run goes on from; what was done to which."""
    done = []
    for _ in range(chance.randint(1, 2)):
        steps = sorted((run_dir / "checkpoints").iterdir())
        files = [path for path in sorted(run_dir.glob("[cr]*/**/*")) if path.is_file()]
        path = chance.choice(files if chance.random() < 0.9 or len(steps) < 2 else steps)
        has_bytes = path.is_file() and path.stat().st_size
        kinds = (flip, zero, cut, empty, remove, swap) if has_bytes else (remove, swap)
        kind = chance.choice(kinds)
        kind(path, chance)
        done.append(f"{kind.__name__} {path.relative_to(run_dir)}")
    return done


def contents(run_dir: Path) -> dict[str, bytes]:
    """All files by their paths."""
    return {
        str(path.relative_to(run_dir)): path.read_bytes()
        for path in run_dir.rglob("*")
        if path.is_file()
    }


def whole_steps(before: dict[str, bytes], after: dict[str, bytes]) -> list[str]:
    """Checkpoints of which every file is as it was, in order."""

    def names(changed: set[str]) -> set[str]:
        return {name.split("/")[1] for name in changed if name.startswith("checkpoints/")}

    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    return sorted(names({*before}) - names(changed))
