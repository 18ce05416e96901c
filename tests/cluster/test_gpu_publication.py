"""Publication to GPUs through vLLM's own transfer engines: two ranks, an engine of two workers.

Learner, trainer's and worker's engines and vLLM's models are real; `benchmarks/publication` says
what stands for cards. `python -m benchmarks.publication` tries all combinations.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.publication.answers import call
from benchmarks.publication.cases import Case
from benchmarks.publication.exchange import Exchange, exchange


def case(family, backend, *, stage, is_tied=True, lora=0):
    return Case(family=family, is_tied=is_tied, lora=lora, stage=stage, backend=backend)


CASES = [
    case("qwen2", "nccl", stage=3),
    case("qwen2", "ipc", stage=0, lora=4),
    case("mixtral", "nccl", stage=0, is_tied=False),
    case("mixtral", "ipc", stage=3, is_tied=False, lora=4),
    case("mixtral", "object_store", stage=3, is_tied=False, lora=4),
]


@pytest.fixture(scope="module")
def processes() -> Iterator[Exchange]:
    with exchange() as started:
        yield started


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.model}, {case.way}")
def test_every_weight_arrives_bit_for_bit(case, processes):
    outcome = processes.outcome_of(case)
    assert outcome.differences == ()
    assert outcome.races == ()
    # All is compared, and would be seen: nothing that is loaded is as it was before.
    before = call(processes.workers, "differences", str(processes.folder / case.model))
    for lines, names in zip(before, call(processes.workers, "names"), strict=True):
        loaded = [name for name in names if not name.endswith("_scale")]
        assert [line.split()[0] for line in lines] == sorted(loaded)
