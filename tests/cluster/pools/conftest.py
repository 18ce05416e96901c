"""One standing pool for the tests of this folder; the last of them ends it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from ahead_jobs import write_jobs
from standing import NAME, Standing, shared_memory, standing_pool

from rlhf_ray.config.tools.yaml_file import write_yaml


@pytest.fixture(scope="session")
def before() -> set[str]:
    """What was in shared memory when there was no pool."""
    return shared_memory()


@pytest.fixture(scope="session")
def standing(
    before: set[str], stories: Path, shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Standing]:
    """A pool with the roles of `pipeline.yaml`, which has all; beside that lies `sft.yaml`."""
    folder = tmp_path_factory.mktemp("standing")
    texts = (shared_data / "text/tinystories_sample.txt").read_text().split("<|endoftext|>")
    write_jobs(folder, stories, [text for text in texts if len(text) > 200])
    rows = [{"text": text.strip()[:80]} for text in texts[:16]]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_yaml(
        {
            "total_steps": 1,
            "batch_size": 4,
            "data": {"path": str(folder / "rows.jsonl"), "workers": 1},
            "policy": {"model": {"path": str(stories), "dtype": "float32"}},
        },
        folder / "sft.yaml",
    )
    with standing_pool(folder, "pipeline", folder / "pipeline.yaml", NAME) as standing:
        yield standing
