"""What stands for the Ray actor around an engine: it passes calls on to vLLM's workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

from actors.weights.segment import SegmentPlace, SharedBucket
from benchmarks.publication.answers import call


class Replica:
    """The part of `RolloutReplica` that a publication calls, with Ray's `.remote`."""

    def __init__(self, workers: Sequence[Connection]) -> None:
        self._workers = workers
        self._threads = ThreadPoolExecutor(max_workers=1)
        for method in (
            self._init_weight_transfer,
            self._reads_memory,
            self._start_weight_update,
            self._update_weights,
            self._finish_weight_update,
        ):
            setattr(self, method.__name__[1:], _Remote(method, self._threads))

    def _init_weight_transfer(self, init_info: dict[str, Any], timeout_s: float) -> None:
        self._on_workers("shutdown_weight_transfer_engine")
        self._on_workers("init_weight_transfer_engine", init_info)

    def _reads_memory(self, node_id: str, place: SegmentPlace) -> bool:
        return True

    def _start_weight_update(self, timeout_s: float, keeps_cache: bool) -> None:
        self._on_workers("start_weight_update")

    def _update_weights(self, update: SharedBucket | dict[str, Any]) -> None:
        info = asdict(update) if isinstance(update, SharedBucket) else update
        self._on_workers("update_weights", info)

    def _finish_weight_update(self, version: int, base: str) -> int:
        self._on_workers("finish_weight_update")
        return version

    def _on_workers(self, method: str, *arguments: Any) -> None:
        from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

        # On its way a call passes the process of vLLM's engine.
        received = MsgpackDecoder().decode(MsgpackEncoder().encode(list(arguments)))
        call(self._workers, "on_worker", method, *received)


@dataclass(frozen=True)
class _Remote:
    method: Callable[..., Any]
    threads: ThreadPoolExecutor

    def remote(self, *arguments: Any) -> Future[Any]:
        return self.threads.submit(self.method, *arguments)


def get(refs: Sequence[Future[Any]], *, timeout_s: float, **_: Any) -> list[Any]:
    """Stands for `actors.cluster.deadline.get`."""
    return [ref.result(timeout_s) for ref in refs]
