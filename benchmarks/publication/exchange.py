"""Two ranks of a policy and two workers of one engine, each a process, and what one case shows."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from actors.cluster.network import HeldPort
from benchmarks.publication import learner, worker
from benchmarks.publication.answers import START_S, call
from benchmarks.publication.cases import Case, write_model, write_other_weights
from benchmarks.publication.fake_cuda import remove_shared_memory

NUM_RANKS = 2


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of one case.

    Attributes:
        num_numbers: That the workers compared, all together.
        differences: Weights that are not bit for bit what they should be, in words.
        races: Reads on a card that nothing orders after their writes, in words.
    """

    num_numbers: int
    differences: tuple[str, ...]
    races: tuple[str, ...]

    @property
    def is_right(self) -> bool:
        """All arrived, and would on a card."""
        return not self.differences and not self.races


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """The processes, and a folder for their models."""

    ranks: tuple[Connection, ...]
    workers: tuple[Connection, ...]
    folder: Path

    def outcome_of(self, case: Case) -> Outcome:
        """Publish a model twice over one connection, the second time with other weights."""
        start, wanted = self.folder / case.model, self.folder / f"{case.model}, wanted"
        if not start.exists():
            write_model(case, start)
        weights = write_other_weights(case, start, wanted)
        call(self.workers, "load", str(start), case.backend, timeout_s=START_S)
        call(self.ranks, "load", case, str(start), timeout_s=START_S)
        port = HeldPort("127.0.0.1")
        call(self.ranks, "connect", case, port.port)
        port.release()
        differences = self._published(0, None, start) + self._published(1, weights, wanted)
        call(self.ranks, "close")
        everybody = (*self.ranks, *self.workers)
        return Outcome(
            num_numbers=sum(call(self.workers, "num_numbers")),
            differences=tuple(differences),
            races=tuple(sorted({r for races in call(everybody, "take_races") for r in races})),
        )

    def _published(
        self, version: int, weights: dict[str, torch.Tensor] | None, wanted: Path
    ) -> list[str]:
        if weights is None:
            call(self.ranks, "publish", version)
        else:
            call(self.ranks, "publish_new", version, weights)
        found = call(self.workers, "differences", str(wanted))
        return [
            f"version {version}, rank {rank}: {line}"
            for rank, lines in enumerate(found)
            for line in lines
        ]


@contextmanager
def exchange() -> Iterator[Exchange]:
    """Start the processes; they end with the block."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="publication-")))
        stack.callback(remove_shared_memory, folder.name)
        to_ranks, to_workers, between = (
            [multiprocessing.Pipe() for _ in range(NUM_RANKS)] for _ in range(3)
        )
        for rank in range(NUM_RANKS):
            callers = (to_workers[rank][1], between[rank][1])
            workplace = worker.WorkerPlace(
                rank=rank, num_ranks=NUM_RANKS, folder=folder, callers=callers
            )
            stack.callback(_end, _start(worker.run, workplace, folder / f"worker{rank}.log"))
            place = learner.RankPlace(
                rank=rank,
                num_ranks=NUM_RANKS,
                port=store.port,
                name=folder.name,
                caller=to_ranks[rank][1],
                workers=tuple(mine for mine, _ in between),
            )
            stack.callback(_end, _start(learner.run, place, folder / f"rank{rank}.log"))
        for mine, theirs in (*to_ranks, *to_workers, *between):
            theirs.close()  # so that the end of a process is seen
            stack.callback(mine.close)
        try:
            yield Exchange(
                ranks=tuple(mine for mine, _ in to_ranks),
                workers=tuple(mine for mine, _ in to_workers),
                folder=folder,
            )
        except Exception as error:
            for log in sorted(folder.glob("*.log")):
                error.add_note(f"{log.name}: {log.read_text(errors='replace')[-2000:]}")
            raise


def _start(run: Callable[[Any], None], place: Any, log: Path) -> Any:
    # The libraries are imported once, and not four times.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deepspeed", "peft", "vllm.v1.worker.cpu_worker"])
    process = context.Process(target=_run, args=(run, place, str(log)), daemon=True)
    process.start()
    return process


def _run(run: Callable[[Any], None], place: Any, log: str) -> None:
    """Keep what DeepSpeed, vLLM and PyTorch say in a file."""
    with open(log, "wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    run(place)
    os._exit(0)  # the libraries' own ends wait for each other


def _end(process: Any) -> None:
    process.join(timeout=10)  # its callers have hung up
    if process.is_alive():
        process.kill()
        process.join(timeout=10)
