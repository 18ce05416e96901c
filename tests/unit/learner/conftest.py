"""A process group of one, so that learners run in the test's own process; rows to learn from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
from learning import hosted, learner_config

from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.config.algorithm_table import OldLogprobs
from rlhf_ray.config.dpo import DpoConfig
from rlhf_ray.config.supervised import RmConfig, SftConfig
from rlhf_ray.learner.base import ExampleLearner
from rlhf_ray.learner.deepspeed.engine import DeepSpeedBuilder
from rlhf_ray.learner.policy import PolicyLearner
from rlhf_ray.learner.value import ValueLearner
from rlhf_ray.specs import PolicySpec, SupervisedSpec, ValueSpec
from rlhf_ray.types import (
    Experience,
    IntArray,
    LabelledAnswer,
    Prompt,
    Ranking,
    Referenced,
    Rollout,
)


@pytest.fixture(scope="session")
def group_of_one() -> Iterator[int]:
    """Until the end of the run: DeepSpeed keeps the groups that it once made."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    deadline = timedelta(seconds=30)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1, timeout=deadline)
    yield store.port
    dist.destroy_process_group()


@pytest.fixture(autouse=True)
def environment_of_a_rank(group_of_one: int, monkeypatch: pytest.MonkeyPatch) -> None:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(group_of_one)}
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", **address}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def rows() -> list[Experience]:
    """Twelve rows of many lengths; in every third one some tokens are not the policy's own."""
    generator = np.random.default_rng(1)
    made = []
    for number in range(12):
        num_prompt, num_response = generator.integers(1, 9), generator.integers(1, 25)
        action_mask_T = np.ones(num_response, dtype=np.bool_)
        if number % 3 == 0:
            action_mask_T[1::4] = False

        def floats(mean: float, *, size: int = num_response) -> Any:
            return generator.normal(mean, 0.5, size=size).astype(np.float32)

        rollout = Rollout(
            prompt=Prompt(
                prompt_id=f"p{number}",
                token_ids_T=tuple(generator.integers(3, 61, size=num_prompt).tolist()),
                text="",
            ),
            draw=number,
            sample=0,
            response_ids_T=generator.integers(3, 61, size=num_response).astype(np.int32),
            logprobs_T=floats(-4),
            versions_T=np.zeros(num_response, dtype=np.int32),
            action_mask_T=action_mask_T,
            finish_reason="stop",
            text="",
        )
        made.append(
            Experience(
                rollout=rollout,
                old_logprobs_T=floats(-4),
                reference_logprobs_T=floats(-4),
                values_T=floats(0),
                advantages_T=floats(0),
                returns_T=floats(0),
            )
        )
    return made


@pytest.fixture(scope="session")
def rankings() -> list[Ranking]:
    """Eleven rankings of 2 to 4 answers, some of them ties.

    One has no prompt, some pairs have a margin.
    """
    generator = np.random.default_rng(2)
    made = []
    for number in range(11):
        num_answers = (2, 3, 2, 4)[number % 4]
        made.append(
            Ranking(
                example_id=f"r{number}",
                prompt_ids_T=token_ids(generator, 0 if number == 4 else generator.integers(1, 9)),
                answer_ids_K=tuple(
                    token_ids(generator, generator.integers(2, 14)) for _ in range(num_answers)
                ),
                margin=0.3 * (number % 3) if num_answers == 2 else 0.0,
                tiers_K={1: (0, 1, 1), 3: (0, 0, 1, 2)}.get(number, ()),
            )
        )
    return made


@pytest.fixture(scope="session")
def pairs() -> list[Referenced]:
    """Nine pairs with a reference that is near the tiny model's own numbers."""
    generator = np.random.default_rng(3)
    made = []
    for number in range(9):
        answers = tuple(token_ids(generator, generator.integers(2, 12)) for _ in range(2))
        made.append(
            Referenced(
                row=Ranking(
                    example_id=f"p{number}",
                    prompt_ids_T=token_ids(generator, generator.integers(1, 7)),
                    answer_ids_K=answers,
                ),
                reference_logps_K=tuple(
                    float(len(answer) * generator.normal(-4.5, 0.3)) for answer in answers
                ),
            )
        )
    return made


@pytest.fixture(scope="session")
def labelled(pairs: list[Referenced]) -> list[Referenced]:
    """The first answer of each pair, good or bad; its second stands for another prompt's."""
    return [
        replace(
            pair,
            row=LabelledAnswer(
                example_id=pair.row.example_id,
                prompt_ids_T=pair.row.prompt_ids_T,
                answer_ids_K=(pair.row.answer_ids_K[0], pair.row.answer_ids_K[1]),
                desirable=number % 3 > 0,
            ),
        )
        for number, pair in enumerate(pairs)
    ]


def token_ids(generator: np.random.Generator, size: int) -> IntArray:
    return generator.integers(3, 61, size=size).astype(np.int32)


@pytest.fixture
def closed_later() -> Iterator[Callable[[Any], Any]]:
    """Hands a learner back, and closes it after the test."""
    learners: list[Any] = []

    def remember(learner: Any) -> Any:
        learners.append(learner)
        return learner

    yield remember
    for learner in learners:
        learner.close()


@pytest.fixture
def make_policy(
    make_model: Callable[..., Path], tmp_path: Path, closed_later: Callable[[Any], Any]
) -> Callable[..., Any]:
    """`make_policy(model={...}, optim={...}, ...)`: a learner on a tiny Llama."""

    def make(
        *,
        path: Path | None = None,
        algorithm: dict[str, Any] | None = None,
        old_logprobs: OldLogprobs = "trainer",
        builder: Any = DeepSpeedBuilder,
        **settings: Any,
    ) -> PolicyLearner:
        spec = PolicySpec(
            learner=learner_config(path or make_model("llama"), settings),
            algorithm=AlgorithmConfig.model_validate({"advantage": "gae", **(algorithm or {})}),
            old_logprobs=old_logprobs,
            temperature=1.0,
            max_new_tokens=24,
            total_steps=10,
            replay_folder=str(tmp_path / "skipped"),
            seed=0,
        )
        return closed_later(hosted(spec, builder))

    return make


@pytest.fixture
def make_value(
    make_model: Callable[..., Path], tmp_path: Path, closed_later: Callable[[Any], Any]
) -> Callable[..., Any]:
    """As `make_policy`, for the critic."""

    def make(
        *,
        algorithm: dict[str, Any] | None = None,
        builder: Any = DeepSpeedBuilder,
        **settings: Any,
    ) -> ValueLearner:
        spec = ValueSpec(
            learner=learner_config(make_model("llama"), settings),
            algorithm=AlgorithmConfig.model_validate({"advantage": "gae", **(algorithm or {})}),
            max_new_tokens=24,
            total_steps=10,
            replay_folder=str(tmp_path / "skipped"),
            seed=0,
        )
        return closed_later(hosted(spec, builder))

    return make


@pytest.fixture
def make_supervised(
    make_model: Callable[..., Path], tmp_path: Path, closed_later: Callable[[Any], Any]
) -> Callable[..., ExampleLearner[Any, Any]]:
    """`make_supervised("dpo", job={"beta": 0.3}, zero={...})`: its learner on a tiny Llama."""

    def make(
        name: str,
        *,
        path: Path | None = None,
        job: dict[str, Any] | None = None,
        builder: Any = DeepSpeedBuilder,
        **settings: Any,
    ) -> ExampleLearner[Any, Any]:
        kind = {"sft": SftConfig, "rm": RmConfig, "dpo": DpoConfig}[name]
        role = "reward" if name == "rm" else "policy"
        config = learner_config(path or make_model("llama"), settings)
        made = kind.model_validate({"data": {"path": "unused"}, role: config, **(job or {})})
        spec = SupervisedSpec(job=made, total_steps=10, replay_folder=str(tmp_path / "skipped"))
        return closed_later(hosted(spec, builder))

    return make
