"""What Adam is given, however a step is cut: into micro-batches, and among ranks on two cards."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.gpu_check.learners import alone
from benchmarks.gpu_check.models import device_of
from benchmarks.gpu_check.records import Measurement
from benchmarks.gpu_check.scale import SCALES, Scale
from benchmarks.gpu_check.setting import Setting
from benchmarks.gradient_steps import LEARNERS, save_model
from benchmarks.gradients import Agreement, Case, agreements, limits_of, process_group

FIGURES = ("distance", "1 - cosine", "norm")
MICRO_BATCHES = (1, 8)
NUM_RANKS = 2
RANKS_S = 150.0

CASES = (
    *(Case(learner=learner, dtype="bfloat16", stage=0) for learner in LEARNERS),
    *(Case(learner="policy", dtype="bfloat16", stage=stage) for stage in (2, 3)),
    Case(learner="policy", dtype="bfloat16", stage=3, checkpointing=True, lora=True),
    Case(learner="policy", dtype="float32", stage=0),
)
CASES_OF_COMPILING = (
    Case(learner="policy", dtype="float32", stage=0, compiled=True),
    *(Case(learner="policy", dtype="bfloat16", stage=stage, compiled=True) for stage in (0, 2)),
    Case(learner="policy", dtype="bfloat16", stage=0, compiled=True, checkpointing=True),
)
CASES_OF_OFFLOADING = tuple(
    Case(learner="policy", dtype="bfloat16", stage=stage, offload=True) for stage in (1, 2, 3)
)
CASES_OF_RANKS = (
    *(Case(learner="policy", dtype="bfloat16", stage=stage) for stage in (0, 2, 3)),
    Case(learner="reward", dtype="bfloat16", stage=3, checkpointing=True, lora=True),
    Case(learner="policy", dtype="float32", stage=3),
)
REHEARSED = 2


def check_micro_batches(setting: Setting) -> Iterator[Measurement]:
    """One step of each learner, whole and in eight parts, against autograd in float32."""
    return _of_one_rank(CASES, setting)


def check_compiling(setting: Setting) -> Iterator[Measurement]:
    """The same with compiled layers."""
    return _of_one_rank(CASES_OF_COMPILING, setting)


def check_offloading(setting: Setting) -> Iterator[Measurement]:
    """The same with Adam on the CPU, which DeepSpeed compiles at its first use."""
    return _of_one_rank(CASES_OF_OFFLOADING, setting)


def _of_one_rank(cases: Sequence[Case], setting: Setting) -> Iterator[Measurement]:
    device = device_of(setting.scale)
    path = save_model(setting.folder / "gradients")
    some = cases if setting.scale.on_gpu else cases[:REHEARSED]
    setting.shared(alone)
    found = [(case, list(found_in(case, path, device))) for case in some]
    yield from _measurements(found)


def check_ranks(setting: Setting) -> Iterator[Measurement]:
    """The same step, half of it on each of two ranks.

    Raises:
        RuntimeError: A rank failed; its words are in the output.
    """
    scale = "card" if setting.scale.on_gpu else "rehearsal"
    folder = setting.folder / "ranks"
    save_model(folder)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, scale, str(rank), str(port), folder],
            env={
                **os.environ,
                "CUDA_VISIBLE_DEVICES": setting.cards[rank].index if setting.cards else "",
            },
        )
        for rank in range(NUM_RANKS)
    ]
    try:
        failed = [rank for rank, process in enumerate(ranks) if process.wait(RANKS_S)]
    finally:
        for process in ranks:
            process.kill()
    if failed:
        raise RuntimeError(f"rank {failed[0]} failed")
    told = json.loads((folder / "found.json").read_text())
    yield from _measurements(
        [(Case(**case), [Agreement(**one) for one in found]) for case, found in told]
    )


def run_rank(scale: Scale, rank: int, port: int, folder: Path) -> None:
    """One of the two; the first writes down what it found."""
    device = device_of(scale)
    cases = CASES_OF_RANKS if scale.on_gpu else CASES_OF_RANKS[:REHEARSED]
    with process_group(device, rank=rank, num_ranks=NUM_RANKS, port=port):
        found = [
            (asdict(case), [asdict(one) for one in found_in(case, folder, device)])
            for case in cases
        ]
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found))


def found_in(case: Case, path: Path, device: torch.device) -> Iterator[Agreement]:
    """For each cut of a rank's share."""
    yield from agreements(case, path, MICRO_BATCHES, device=device).values()


def _measurements(found: Sequence[tuple[Case, Sequence[Agreement]]]) -> Iterator[Measurement]:
    """The worst of each dtype, and whose it is."""
    by_dtype = defaultdict(list)
    for case, agreeing in found:
        by_dtype[case.dtype] += [(case, agreement.figures) for agreement in agreeing]
    for dtype, some in by_dtype.items():
        for number, (name, limit) in enumerate(zip(FIGURES, limits_of(dtype), strict=True)):
            case, figures = max(some, key=lambda entry: entry[1][number])
            yield Measurement(
                name=f"{dtype} gradients: {name}",
                value=figures[number],
                at_most=limit,
                note=f"worst: {case.learner}, ZeRO {case.stage}",
            )


if __name__ == "__main__":
    run_rank(SCALES[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
