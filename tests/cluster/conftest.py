"""One Ray cluster and one engine for all tests; two pools on them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from jobs import DEADLINES, ppo_config, start_roles

from actors.pool.pool import Pool
from rlhf_ray.config.fault_tolerance import FailureConfig, TimeoutConfig
from rlhf_ray.config.online import PpoConfig

# More than the machine has: roles mostly work by turns.
LOGICAL_CPUS = 32


@pytest.fixture(scope="module", autouse=True)
def functions_travel_by_value(request: pytest.FixtureRequest) -> None:
    """What a test has an actor call: workers cannot import the tests."""
    ray.cloudpickle.register_pickle_by_value(request.module)


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(
            address="local",
            num_cpus=LOGICAL_CPUS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def make_config(
    shared_data: Path, stories: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., PpoConfig]:
    """`make_config(run_dir, **sections)`."""
    texts = (shared_data / "text/tinystories_sample.txt").read_text().split("<|endoftext|>")
    prompts = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    # Of many lengths, so that padding is not empty and micro-batches are uneven.
    rows = [{"prompt": text.strip()[: 12 + 17 * (n % 7)]} for n, text in enumerate(texts[:40])]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(run_dir: Path, **sections: Any) -> PpoConfig:
        return ppo_config(stories, prompts, run_dir, **sections)

    return make


@pytest.fixture(scope="session")
def pool(cluster: None) -> Iterator[Pool]:
    """Every role on a group of its own, with one rank."""
    often = FailureConfig.model_validate({"actor": {"restarts": 1000, "backoff_s": 0.0}})
    pool = Pool("one", TimeoutConfig.model_validate(DEADLINES), failures=often)
    yield pool
    asyncio.run(pool.close())


@pytest.fixture(scope="session")
def shared_pool(
    pool: Pool, make_config: Callable[..., PpoConfig], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pool]:
    """Policy and critic on two ranks each, reference and reward beside them, in one group.

    The engine is the other pool's: only one is started a session.
    """
    config = make_config(tmp_path_factory.mktemp("start"))
    asyncio.run(start_roles(config, pool))
    shared = Pool("two", TimeoutConfig.model_validate(DEADLINES))
    shared.state.roles["rollout"] = pool.state.roles["rollout"]
    yield shared
    shared.state.roles.pop("rollout")
    asyncio.run(shared.close())
