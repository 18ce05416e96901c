"""Weights in memory that processes share: readers get every bit, and nothing stays behind."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.cluster.role_handle import RoleHandle
from actors.weights import host_publisher, replica_client
from actors.weights.bucket import Bucket, pack, unpack
from actors.weights.host_publisher import HostMemoryPublisher, Outbox
from actors.weights.replica_client import ReplicaClient
from actors.weights.segment import (
    Mappings,
    Segment,
    SegmentPlace,
    SegmentRing,
    SharedBucket,
    mapped,
)
from actors.weights.sync_spec import SyncSpec
from rlhf_ray.deadlines import DeadlineError
from rlhf_ray.errors import RunError

SENDER = """
import time
from actors.weights.segment import Segment
segment = Segment(4096)
segment.data[:] = 7
place = segment.place
print(place.pid, place.fd, place.device, place.inode, flush=True)
time.sleep(600)
"""


@pytest.fixture
def sender():
    process = subprocess.Popen(
        [sys.executable, "-c", SENDER],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    yield process
    process.kill()
    process.wait(timeout=10)


def place_of(sender):
    numbers = [int(number) for number in sender.stdout.readline().split()]
    return SegmentPlace(**dict(zip(("pid", "fd", "device", "inode"), numbers, strict=True)))


def test_another_process_reads_and_keeps_what_a_killed_one_wrote(sender):
    place = place_of(sender)
    before = set(os.listdir("/dev/shm"))
    data = mapped(place)
    assert set(data) == {7}
    assert not data.flags.writeable
    sender.send_signal(signal.SIGKILL)
    sender.wait(timeout=10)
    assert set(data) == {7}
    with pytest.raises(RunError, match=f"memory of process {sender.pid} cannot be read"):
        mapped(place)
    assert set(os.listdir("/dev/shm")) <= before


def test_another_file_of_the_same_number_is_not_taken_for_it():
    segment = Segment(10)
    place = segment.place
    segment.close()
    with closing(Segment(10)) as other:
        assert other.place.fd == place.fd
        with pytest.raises(RunError, match=f"memory of process {os.getpid()} is gone"):
            mapped(place)


class SlowReplica:
    """Loads buckets one by one, each after a moment; its methods are called as those of handles."""

    def __init__(self, seed: int, *, is_near: bool = True, fails_at: int = -1) -> None:
        self.random, self.is_near, self.fails_at = random.Random(seed), is_near, fails_at
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.loaded: list[tuple[str, torch.Tensor]] = []
        self.num_buckets, self.mappings = 0, Mappings()

    def __getattr__(self, name: str) -> SimpleNamespace:
        method = getattr(self, f"_{name}")
        return SimpleNamespace(remote=lambda *given: self.thread.submit(method, *given))

    def _reads_memory(self, node_id: str, place: SegmentPlace) -> bool:
        return self.is_near

    def _update_weights(self, update: SharedBucket | Bucket) -> None:
        time.sleep(self.random.choice((0.0, 0.0, 0.003)))
        if self.num_buckets == self.fails_at:
            raise ConnectionError("gone")
        self.num_buckets += 1
        bucket = update if isinstance(update, Bucket) else self.mappings.read(update)
        self.loaded += [(name, weight.clone()) for name, weight in unpack(bucket)]


@pytest.fixture(autouse=True)
def without_ray(monkeypatch):
    def copied(bucket: Bucket) -> Bucket:
        return Bucket(**vars(bucket) | {"data": bucket.data.copy()})

    def get(refs: list[Future], *, timeout_s: float, actors: list[str], **_: object) -> list:
        answers = []
        for name, ref in zip(actors, refs, strict=False):
            try:
                answers.append(ref.result(timeout_s))
            except ConnectionError as error:
                raise RunError(f"{name}: {error}") from error
            except TimeoutError as error:
                raise DeadlineError(f"no answer from {name}") from error
        return answers

    def first_ready(refs: list[Future], *, timeout_s: float) -> int:
        done, _ = wait(refs, timeout_s, return_when=FIRST_COMPLETED)
        return next((number for number, ref in enumerate(refs) if ref in done), 0)

    monkeypatch.setattr(host_publisher, "node_id", lambda: "here")
    monkeypatch.setattr(host_publisher, "ray", SimpleNamespace(put=copied))
    monkeypatch.setattr(replica_client, "get", get)
    monkeypatch.setattr(replica_client, "first_ready", first_ready)


def send(replicas, weights, bucket_bytes, *, late_s=15.0):
    spec = SyncSpec(
        backend="object_store",
        gpus_per_replica=0,
        bucket_bytes=bucket_bytes,
        timeout_s=20.0,
        late_s=late_s,
    )
    actors = {f"job/rollout/{index}": replica for index, replica in enumerate(replicas)}
    client = ReplicaClient(spec, RoleHandle("rollout", actors))
    with closing(SegmentRing()) as segments:
        outbox = Outbox(client, segments)
        for bucket in pack(iter(weights), bucket_bytes=bucket_bytes, room=outbox.room):
            outbox.send(bucket)
        outbox.settle()
    return outbox.num_bytes, client.failed


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=25),
    bucket_bytes=st.integers(16, 900),
    near=st.lists(st.booleans(), min_size=1, max_size=3),
    seed=st.integers(0, 2**16),
)
def test_slow_and_fast_replicas_load_every_bit(sizes, bucket_bytes, near, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = [(f"w{n}", torch.randn(size, generator=generator)) for n, size in enumerate(sizes)]
    replicas = [SlowReplica(seed + n, is_near=is_near) for n, is_near in enumerate(near)]
    num_bytes, failed = send(replicas, weights, bucket_bytes)
    assert num_bytes >= sum(4 * size for size in sizes)
    assert not failed
    for replica in replicas:
        assert [name for name, _ in replica.loaded] == [name for name, _ in weights]
        for (_, ours), (_, theirs) in zip(weights, replica.loaded, strict=True):
            assert torch.equal(ours, theirs)


def test_a_replica_that_fails_drops_out_and_no_file_stays_open():
    weights = [(f"w{n}", torch.ones(8)) for n in range(6)]
    open_before = set(os.listdir("/proc/self/fd"))
    well, failing = SlowReplica(0), SlowReplica(1, fails_at=2)
    _, failed = send([well, failing], weights, 32)
    assert failed == {1: "job/rollout/1: gone"}
    assert [name for name, _ in well.loaded] == [name for name, _ in weights]
    assert len(failing.loaded) == 2
    del well, failing  # and with them what they have mapped
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) == open_before


@pytest.mark.parametrize("stuck_at", [0, 3])
def test_a_replica_that_is_stuck_is_not_waited_for(stuck_at):
    """First in the row or last: the others load all that there is."""
    weights = [(f"w{n}", torch.ones(8)) for n in range(6)]
    released = threading.Event()

    class Stuck(SlowReplica):
        def _update_weights(self, update):
            if self.num_buckets == stuck_at:
                assert released.wait(30)
            super()._update_weights(update)

    for number in (0, 2):
        released.clear()
        replicas = [SlowReplica(0), SlowReplica(1)]
        replicas.insert(number, stuck := Stuck(2, is_near=False))
        started_s = time.monotonic()
        _, failed = send(replicas, weights, 32, late_s=0.5)
        assert time.monotonic() - started_s < 5
        assert failed == {
            number: f"publish version -1: rollout.update_weights: job/rollout/{number} is 0.5 s "
            "behind another engine"
        }
        for replica in replicas:
            assert len(replica.loaded) == (stuck_at if replica is stuck else 6)
        released.set()
        stuck.thread.shutdown()


def test_who_answers_while_another_fails_has_the_whole_deadline():
    weights = [("w", torch.ones(8))]
    failing, slow = SlowReplica(0, fails_at=0), SlowReplica(1)
    update = slow._update_weights
    slow._update_weights = lambda bucket: (time.sleep(0.5), update(bucket))[1]
    _, failed = send([failing, slow], weights, 32, late_s=0.1)
    assert failed == {0: "job/rollout/0: gone"}


class Replica:
    """Acknowledges; or fails in one of its calls."""

    def __init__(self, fails_in: str = "") -> None:
        self.fails_in, self.asked = fails_in, list[str]()

    def __getattr__(self, method: str) -> SimpleNamespace:
        return SimpleNamespace(remote=partial(self._call, method))

    def _call(self, method: str, *arguments: object) -> Future:
        self.asked.append(method)
        answer: Future = Future()
        if method == self.fails_in:
            answer.set_exception(ConnectionError("gone"))
        else:
            answers = {"reads_memory": True, "finish_weight_update": arguments[0]}
            answer.set_result(answers.get(method))
        return answer


CALLS = ["reads_memory", "start_weight_update", "update_weights", "finish_weight_update"]


def gathered(monkeypatch, taken):
    """Weights as ZeRO-3 gathers them: all ranks take all of them."""

    def named_weights(lm, **_):
        for number in range(6):
            yield f"w{number}", torch.ones(8)
            taken.append(number)

    monkeypatch.setattr(host_publisher, "named_weights", named_weights)


@pytest.mark.parametrize("fails_in", CALLS)
def test_a_replica_that_fails_holds_up_neither_the_others_nor_the_ranks(fails_in, monkeypatch):
    taken: list[int] = []
    gathered(monkeypatch, taken)
    spec = SyncSpec(backend="object_store", gpus_per_replica=0, bucket_bytes=64, timeout_s=20.0)
    for well in ([Replica()], []):
        replicas = [Replica(fails_in), *well]
        actors = {f"job/rollout/{index}": replica for index, replica in enumerate(replicas)}
        role: RoleHandle = RoleHandle("rollout", actors)
        publisher = HostMemoryPublisher(None, spec, role, is_sender=True)
        sent = publisher.publish(3, role)
        assert sent.failed == {"job/rollout/0": "job/rollout/0: gone"}
        assert taken == list(range(6)), "the other ranks would wait for this one"
        taken.clear()
        for replica in well:
            assert list(dict.fromkeys(replica.asked)) == CALLS
        assert list(dict.fromkeys(replicas[0].asked)) == CALLS[: CALLS.index(fails_in) + 1]


def test_a_rank_that_cannot_send_gathers_to_the_end(monkeypatch):
    taken: list[int] = []
    gathered(monkeypatch, taken)
    spec = SyncSpec(backend="object_store", gpus_per_replica=0, bucket_bytes=64, timeout_s=20.0)
    role: RoleHandle = RoleHandle("rollout", {"job/rollout/0": Replica()})
    publisher = HostMemoryPublisher(None, spec, role, is_sender=True)

    def no_room(num_bytes):
        raise MemoryError("no room for a segment")

    monkeypatch.setattr(publisher.segments, "next", no_room)
    with pytest.raises(MemoryError):
        publisher.publish(3, role)
    assert taken == list(range(6))
    taken.clear()
    assert HostMemoryPublisher(None, spec, role, is_sender=False).publish(3, role).num_bytes == 0
    assert taken == list(range(6))
