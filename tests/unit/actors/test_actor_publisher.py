"""The trainer's side over NCCL: vLLM's own engine, and a communicator that waits as NCCL does."""

from __future__ import annotations

import threading

import pytest
from fake_actors import RecordingActor, get

from actors.cluster.role_handle import RoleHandle
from actors.engines.rollout import RolloutReplica
from actors.weights import replica_client, vllm_publisher
from actors.weights.sync_spec import SyncSpec
from actors.weights.vllm_publisher import VllmPublisher
from benchmarks.publication.fake_cuda import on_card
from benchmarks.tiny_models import tiny
from rlhf_ray.errors import RunError
from rlhf_ray.learner import weights as learner_weights

# What hangs without it ends the test with another error.
PATIENCE_S = 5.0


class WaitingCommunicator:
    """A peer never comes, until somebody ends the communicator."""

    def __init__(self) -> None:
        self.waits, self.ended = threading.Event(), threading.Event()

    @property
    def disabled(self):
        return self.ended.is_set()

    def broadcast(self, tensor, src):
        if self.ended.is_set():
            raise AssertionError("NCCL's memory is gone")
        self.waits.set()
        if not self.ended.wait(PATIENCE_S):
            raise AssertionError("it waits for a peer that is gone")

    def destroy(self):
        self.ended.set()


@pytest.fixture
def communicator():
    return WaitingCommunicator()


@pytest.fixture
def connected(monkeypatch, communicator):
    """`connected(replica)`: rank 0's publisher."""
    from vllm.distributed.weight_transfer import nccl_engine

    monkeypatch.setattr(replica_client, "get", get)
    monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", lambda info: communicator)

    def connect(replica):
        spec = SyncSpec(
            backend="nccl",
            gpus_per_replica=2,
            bucket_bytes=2**12,
            timeout_s=60.0,
        )
        lm, _ = tiny("llama")
        replicas = RoleHandle("rollout", {"job/rollout/0": replica})
        publisher = VllmPublisher(lm, spec, replicas, rank=0, host="127.0.0.1", port=1)
        publisher.lm = lm
        return publisher

    with on_card(0):
        yield connect


def test_a_replica_that_dies_amid_the_exchange_ends_it_with_its_own_error(connected, communicator):
    def die():
        communicator.waits.wait()
        raise RunError("publish version 1: rollout.update_weights: job/rollout/0 died after 3 s")

    publisher = connected(
        RecordingActor(RolloutReplica, update_weights=die, finish_weight_update=1)
    )
    with pytest.raises(RunError, match="job/rollout/0 died after 3 s"):
        publisher.publish(1, publisher.client.replicas)
    publisher.close()


def test_a_publication_that_hangs_is_ended_from_another_thread(connected, communicator):
    """PyNccl's broadcast returns from an ended communicator as if it had sent."""
    replica = RecordingActor(RolloutReplica, update_weights=communicator.ended.wait)
    publisher = connected(replica)
    ending = threading.Thread(target=lambda: communicator.waits.wait() and publisher.abort())
    ending.start()
    with pytest.raises(RunError, match="publish version 1: the way to the engines was closed"):
        publisher.publish(1, publisher.client.replicas)
    ending.join(PATIENCE_S)
    asked = [method for method, *_ in replica.asked]
    assert asked[-1] == "update_weights", "it would switch over to a part of the weights"
    publisher.abort()  # it is over: nothing is ended twice
    publisher.close()


def test_ranks_gather_all_weights_although_no_replica_takes_any(connected, monkeypatch):
    taken: list[str] = []

    def named_weights(lm, **_):
        for name, weight in learner_weights.named_weights(lm):
            yield name, weight
            taken.append(name)

    monkeypatch.setattr(vllm_publisher, "named_weights", named_weights)
    replica = RecordingActor(RolloutReplica, start_weight_update=RunError("it is gone"))
    publisher = connected(replica)
    with pytest.raises(RunError, match="it is gone"):
        publisher.publish(1, publisher.client.replicas)
    assert len(taken) == len(list(learner_weights.named_weights(publisher.lm)))
    assert [method for method, *_ in replica.asked] == [
        "init_weight_transfer", "start_weight_update"
    ]  # fmt: skip


def test_both_sides_receive_one_bucket_at_a_time(connected):
    replica = RecordingActor(RolloutReplica, finish_weight_update=1)
    publisher = connected(replica)
    [(method, info, _)] = replica.asked
    assert method == "init_weight_transfer"
    assert info["packed_num_buffers"] == publisher.engine.packed_num_buffers == 1
    assert info["packed_buffer_size_bytes"] == 2**12
