"""`samples.jsonl` and `pairs.jsonl`, which grow with every step of a sampling run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_ray.disk import room_for
from rlhf_ray.errors import ConfigError

SAMPLES, PAIRS = "samples.jsonl", "pairs.jsonl"


class SampleFiles:
    """Both files of a run. Their sizes after a step say what belongs to it and the steps before."""

    def __init__(self, run_dir: Path) -> None:
        """Below `run_dir`; call `rewind` before the first row is appended."""
        self._paths = {name: run_dir / name for name in (SAMPLES, PAIRS)}

    def check(self, sizes: Mapping[str, int]) -> None:
        """Whether what was written until `sizes` was told is still there.

        Raises:
            ConfigError: A file is shorter: somebody changed it.
        """
        for name, path in self._paths.items():
            size, found = sizes.get(name, 0), path.stat().st_size if path.exists() else 0
            if found < size:
                raise ConfigError(
                    f"{path} must have at least the {size} bytes that the checkpoint knows of, "
                    f"got {found}: without them the run cannot be resumed"
                )

    def rewind(self, sizes: Mapping[str, int]) -> None:
        """Take back what came after `sizes` was told, half a line that a crash left included.

        A file that is not named there begins anew.

        Raises:
            ConfigError: As in `check`.
        """
        self.check(sizes)
        for name, path in self._paths.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            os.truncate(path, sizes.get(name, 0))

    def append(
        self, samples: Sequence[Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Write a step's rows; they are on the disk when this returns."""
        for path, rows in zip(self._paths.values(), (samples, pairs), strict=True):
            with room_for("samples", path), path.open("a", encoding="utf-8") as file:
                # `str` for what JSON lacks: parquet files have dates and decimals.
                file.writelines(
                    json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows
                )
                file.flush()
                os.fsync(file.fileno())

    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {name: path.stat().st_size for name, path in self._paths.items()}
