"""The real model and texts that tests use, and the order: quick tests before the cluster's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The cluster and its engine start last, and end with the run.
    items.sort(key=lambda item: "cluster" in item.path.parts)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = Path(os.environ.get("RLHF_RAY_DATA", ROOT / "../shared/data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data: RLHF_RAY_DATA names {folder}, which is not there")
    return folder


@pytest.fixture(scope="session")
def stories(shared_data: Path) -> Path:
    """A real language model of 0.4 M parameters, with tied embeddings."""
    return shared_data / "models/stories260K"
