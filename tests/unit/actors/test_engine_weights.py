"""What an engine's actor does with weights: from which memory they are loaded, adapters apart."""

from __future__ import annotations

import os

import numpy as np
import pytest
from fake_vllm import FakeEngine, Tokenizer

from actors.engines import rollout
from actors.engines.rollout import RolloutReplica
from actors.engines.samples import Ending
from actors.engines.spec import EngineSpec, engine_arguments
from actors.weights.adapter import ADAPTER_ID
from actors.weights.bucket import Bucket
from actors.weights.segment import SegmentPlace, mapped
from rlhf_ray.config.rollout import EngineConfig
from rlhf_ray.errors import RunError
from rlhf_ray.roles.groups import GenerationRequest
from rlhf_ray.types import Prompt


class LoadingEngine(FakeEngine):
    """Reads what it is told to load, as vLLM's workers do."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[bytes] = []
        self.places: list[SegmentPlace] = []
        self.adapters: list[int | None] = []

    async def update_weights(self, request):
        info = request.update_info
        self.places.append(SegmentPlace(**info["place"]))
        self.loaded.append(mapped(self.places[-1])[: info["num_bytes"]].tobytes())

    async def add_request(self, *arguments, lora_request=None, **keywords):
        self.adapters.append(lora_request and lora_request.lora_int_id)
        return await super().add_request(*arguments, **keywords)


def spec_of(**settings):
    values = {
        "model_path": "m", "tokenizer_path": "m", "revision": "", "identity": "", "sleeps": True,
        "trust_remote_code": False, "engine": EngineConfig(), "max_model_len": 64, "num_gpus": 0,
        "weight_backend": "object_store", **settings,
    }  # fmt: skip
    return EngineSpec(**values)


@pytest.fixture
def replica(monkeypatch):
    monkeypatch.setattr(rollout, "use_cluster_network", lambda: None)
    replica = RolloutReplica("job/rollout/0", {}, spec_of(adapter_rank=4))
    replica.engine, replica.tokenizer = LoadingEngine(), Tokenizer()
    return replica


async def test_a_bucket_of_another_node_is_loaded_from_the_actors_memory(replica):
    data = np.arange(64, dtype=np.uint8)
    bucket = Bucket(names=["w"], dtype_names=["float32"], shapes=[[16]], data=data)
    await replica.update_weights(bucket)
    assert replica.engine.loaded == [data.tobytes()]
    [place] = replica.engine.places
    assert place.pid == os.getpid()
    await publish(replica, 1, "")
    with pytest.raises(RunError):  # given back when the publication has ended
        mapped(place)


async def publish(replica, version, base):
    await replica.start_weight_update(60.0, keeps_cache=False)
    await replica.finish_weight_update(version, base)


async def admit(replica, draw):
    request = GenerationRequest(
        prompt=Prompt(prompt_id="p", token_ids_T=(1, 2), text=""), draw=draw, seeds_G=(1,),
        temperature=1.0, max_new_tokens=4,
    )  # fmt: skip
    await replica.admit([request], Ending(), 60.0, False)


async def test_requests_are_answered_with_the_adapter_once_it_is_there(replica):
    assert await replica.base_name() == ""
    await admit(replica, 1)
    await publish(replica, 0, "below")
    # vLLM drops adapters when weights have come, so that this one is put in place afterwards.
    last = ["finish_weight_update", "collective_rpc use_adapter", "resume"]
    assert replica.engine.calls[-3:] == last
    assert await replica.base_name() == "below"
    await admit(replica, 2)
    await publish(replica, 1, "")  # of a job that merges
    assert replica.engine.calls[-2:] == ["finish_weight_update", "resume"]
    await admit(replica, 3)
    assert replica.engine.adapters == [None, ADAPTER_ID, None]


async def test_weights_below_adapters_are_kept_asleep(replica):
    asked = []

    async def sleep(level):
        asked.append(level)

    replica.engine.sleep = sleep
    await replica.sleep(2, 60.0)
    assert asked == [1]


@pytest.mark.parametrize(("rank", "room"), [(1, 1), (3, 8), (16, 16), (200, 256), (512, 512)])
def test_an_engine_has_room_for_the_adapters_rank(rank, room):
    arguments = engine_arguments(spec_of(adapter_rank=rank))
    assert (arguments["enable_lora"], arguments["max_lora_rank"]) == (True, room)
    assert "enable_lora" not in engine_arguments(spec_of())
