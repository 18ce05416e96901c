"""A worker of environments: what it loads, keeps and drops; which of several are of no use."""

from __future__ import annotations

import asyncio

import pytest

from actors.cluster.role_handle import RoleHandle
from actors.environments.worker import EnvironmentWorker, EnvironmentWorkers
from actors.roles.acting import acting_of
from actors.roles.start import role_specs
from rlhf_ray.config.environment import SLACK_S, EnvironmentConfig
from rlhf_ray.config.online import GrpoConfig
from rlhf_ray.errors import ActorDied, ConfigError, GroupFailed
from rlhf_ray.specs import EnvironmentSpec
from rlhf_ray.types import Prompt

PROMPT = Prompt(prompt_id="p", token_ids_T=(1,), text="?")
WORLD = """
from rlhf_ray.environments.protocol import Step
class World:
    async def reset(self, prompt, seed): self.seed = seed
    async def step(self, answer):
        return Step(messages=({{"role": "{role}", "content": answer + "{sign}"}},))
    async def close(self): ...
"""


@pytest.fixture
def spec(tmp_path):
    """`spec(role, sign)`: of a world whose messages have that role and sign."""

    def make(role="user", sign="!", **config):
        file = tmp_path / "world.py"
        file.write_text(WORLD.format(role=role, sign=sign))
        return EnvironmentSpec(
            environment=EnvironmentConfig(path=f"{file}:World", **config),
            end_token_ids=(2,),
            chat_template="{{ messages }}",
            tools=(),
            max_tokens=64,
        )

    return make


@pytest.fixture
def worker():
    return EnvironmentWorker("job/environment/0", {}, 100.0)


async def test_sessions_go_on_where_the_same_is_loaded_again(worker, spec):
    await worker.load(spec())
    await worker.open("a", 0, 0, PROMPT, 7)
    await worker.load(spec())  # another worker was started again
    assert (await worker.step("a", "a")).messages[0]["content"] == "a!"
    await worker.load(spec(max_turns=3))
    with pytest.raises(GroupFailed, match="is closed"):
        await worker.step("a", "a")


async def test_the_next_job_has_the_users_code_read_anew(worker, spec):
    await worker.load(spec())
    await worker.open("a", 0, 0, PROMPT, 7)
    await worker.drop_sessions()
    assert not len(worker.sessions)
    await worker.load(spec(sign="?"))
    await worker.open("a", 0, 0, PROMPT, 7)
    assert (await worker.step("a", "a")).messages[0]["content"] == "a?"


async def test_messages_must_have_the_roles_that_the_template_was_checked_for(worker, spec):
    await worker.load(spec(role="tool"))
    await worker.open("a", 0, 0, PROMPT, 7)
    with pytest.raises(GroupFailed, match=r"must have the role user, .* got 'tool'"):
        await worker.step("a", "a")
    await worker.load(spec(role="tool", template="append"))
    await worker.open("a", 0, 0, PROMPT, 7)
    assert (await worker.step("a", "a")).messages[0]["role"] == "tool"
    with pytest.raises(ConfigError, match="has no function 'Nothing'"):
        path = spec().environment.path.replace("World", "Nothing")
        await worker.load(
            EnvironmentSpec(
                environment=EnvironmentConfig(path=path),
                end_token_ids=(),
                chat_template="",
                tools=(),
                max_tokens=1,
            )
        )


class Handle(RoleHandle):
    """Actors that answer, or have died."""

    def __init__(self, *alive: bool) -> None:
        super().__init__("environment", {f"environment/{n}": n for n in range(len(alive))})
        self.alive, self.asked = alive, []

    def call(self, method, *, timeout_s, only=None):
        async def ask():
            self.asked.append((method.__name__, only))
            await asyncio.sleep(0)
            if not self.alive[only]:
                raise ActorDied.of(
                    "late: killed", role=self.name, index=only, operation="x", age_s=1.0
                )
            return [None]

        return ask


async def test_those_are_replaced_that_do_not_respond():
    role = Handle(True, False, True, False)
    assert await EnvironmentWorkers().broken(role) == [1, 3]
    assert sorted(role.asked) == [("responds", n) for n in range(4)]


def test_engines_are_told_of_the_workers_that_there_are(spec):
    role = Handle(True, True)
    acting = acting_of(role, spec(timeout_s=5.0, max_turns=3))
    assert acting.workers == (0, 1)
    assert acting.limits.timeout_s == 5.0 + SLACK_S < acting.closing_s
    assert acting.limits.max_turns == 3 and acting.end_ids == {2}
    assert {acting.worker_of(1, sample, 4) for sample in range(4)} == {0, 1}


def test_a_job_in_an_environment_has_workers_and_no_reward_ranks(spec, stories):
    config = GrpoConfig.model_validate(
        {
            "data": {"path": "x"},
            "policy": {"model": {"path": str(stories)}},
            "environment": spec().environment.model_dump(exclude_unset=True),
        }
    )
    specs = role_specs(config.groups, config)
    assert specs["environment"] == EnvironmentWorkers()
    assert not {"reward", "reward_worker"} & specs.keys()
