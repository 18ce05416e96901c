"""Runs of every kind of job end as they did when they were recorded: no file, bit or metric less.

Whoever means to change what a run leaves records anew, with `RECORD_GOLDEN_RUNS=1` set, and shows
the difference in the commit. Sums round as a processor's kernels add, so that a record has the bits
of one kind of processor; on any other kind the names of files and metrics are compared.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from golden_runs import RECORDS, processor, run_all, versions

RANKS = {1: "one rank", 2: "two ranks"}
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def all_ran(shared_data, stories, tmp_path_factory):
    """What the runs of each number of ranks have left; side by side, as much of each is waiting."""
    texts = (shared_data / "text/tinystories_sample.txt").read_text().split("<|endoftext|>")
    folders = [tmp_path_factory.mktemp("golden") for _ in RANKS]
    with ThreadPoolExecutor() as threads:
        left = threads.map(
            lambda ranks, folder: run_all(ranks, folder, stories, texts), RANKS, folders
        )
        return dict(zip(RANKS, left, strict=True))


@pytest.fixture(scope="module", params=RANKS, ids=RANKS.get)
def ran(request, all_ran):
    """The number of ranks, and what their runs have left."""
    return request.param, all_ran[request.param]


def record_of(ranks, on):
    path = RECORDS / f"{on}-{ranks}.json"
    return json.loads(path.read_text()) if path.exists() else None


@pytest.fixture(scope="module", autouse=True)
def recorded(ran):
    ranks, left = ran
    if os.environ.get("RECORD_GOLDEN_RUNS"):
        record = {"versions": versions(), "runs": left}
        text = json.dumps(record, indent=1, sort_keys=True)
        RECORDS.mkdir(exist_ok=True)
        (RECORDS / f"{processor()}-{ranks}.json").write_text(text + "\n")


def test_no_file_or_metric_is_less_or_more(ran):
    ranks, left = ran
    records = [json.loads(path.read_text()) for path in RECORDS.glob(f"*-{ranks}.json")]
    assert records, "record one"
    for record in records:
        for name, run in record["runs"].items():
            assert left[name]["files"] == run["files"], name
            assert left[name]["digests"].keys() == run["digests"].keys(), name
            ours, theirs = ([row.keys() for row in x["metrics"]] for x in (left[name], run))
            assert ours == theirs, name


def test_every_bit_is_as_recorded_on_a_processor_of_this_kind(ran):
    ranks, left = ran
    record = record_of(ranks, processor())
    if record is None:
        pytest.skip(f"no record of {processor()}: names alone were compared")
    assert record["versions"] == versions(), "record anew on these"
    for name, run in record["runs"].items():
        assert left[name]["metrics"] == run["metrics"], name
        assert left[name]["digests"] == run["digests"], name
