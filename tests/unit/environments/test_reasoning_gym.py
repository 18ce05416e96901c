"""Tasks of reasoning-gym by name: as prompts with their verifier, and as an environment."""

from __future__ import annotations

import asyncio
import json
import sys
import threading

import pytest

from rlhf_ray.config.checks import references
from rlhf_ray.config.data import SourceConfig
from rlhf_ray.config.environment import EnvironmentConfig
from rlhf_ray.data.files.sources import read_rows
from rlhf_ray.environments import reasoning_gym as environment_module
from rlhf_ray.environments.loading import environment_maker
from rlhf_ray.environments.reasoning_gym import ReasoningGym
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards import reasoning_gym as rewards
from rlhf_ray.types import Prompt


class FakeDataset:
    """As much of a procedural data set as is used: numbered sums."""

    def __init__(self, seed, size, largest=9):
        assert largest > 0, "largest must be positive"
        self.seed, self.size, self.largest = seed, size, largest

    def __getitem__(self, index):
        x, y = (self.seed + index) % self.largest, index
        return {"question": f"{x} + {y}?", "answer": str(x + y), "metadata": {"terms": (x, y)}}

    def score_answer(self, answer, entry):
        return 0.0 if answer is None else 1.0 if answer == entry["answer"] else 0.01


class FakeGym:
    @staticmethod
    def create_dataset(name, **settings):
        if name != "sums":
            raise ValueError(f"Dataset '{name}' not registered")
        return FakeDataset(**settings)


@pytest.fixture(params=["fake", "real"])
def gym(request, monkeypatch):
    """The package itself where it is installed; the same rules without it."""
    if request.param == "real":
        pytest.importorskip("reasoning_gym")
        yield "chain_sum"
    else:
        monkeypatch.setitem(sys.modules, "reasoning_gym", FakeGym)
        yield "sums"
    rewards._dataset.cache_clear()


def answer_of(row):
    return rewards.entry(row[rewards.COLUMN])["answer"]


def test_a_rows_answer_is_judged_by_the_tasks_own_verifier(gym):
    made = json.loads(json.dumps(rewards.rows(gym, size=3, seed=4)))
    assert len({row["prompt"][0]["content"] for row in made}) == 3
    places = [row[rewards.COLUMN] for row in made]
    right = [f"<answer>0x</answer> no: <answer> {answer_of(row)} </answer>" for row in made]
    assert rewards.verified(right, reasoning_gym=places) == [1.0] * 3
    as_text = [json.dumps(place) for place in places]
    assert rewards.verified(right, reasoning_gym=as_text) == [1.0] * 3
    wrong, silent = rewards.verified(["<answer>x</answer>", "5"], reasoning_gym=places[:2])
    assert wrong < 1.0 and silent == 0.0
    assert rewards.verified(["x"], reasoning_gym=[None]) == [None]


async def test_a_wrong_answer_may_be_given_again(gym):
    [row] = rewards.rows(gym, size=1, seed=0)
    prompt = Prompt(prompt_id="p", token_ids_T=(1,), text=row["prompt"], columns=row)
    right = f"<answer>{answer_of(row)}</answer>"
    environment = ReasoningGym(attempts=2)
    await environment.reset(prompt, 0)
    first = await environment.step("<answer>x</answer>")
    assert not first.is_done and first.messages[0]["role"] == "user"
    assert first.reward is None and 0.0 <= first.reward_if_last < 1.0
    second = await environment.step(right)
    assert second.is_done and second.reward == 1.0
    other = ReasoningGym(attempts=2)
    await other.reset(prompt, 0)
    assert (await other.step(right)).is_done
    with pytest.raises(ConfigError, match=f"p: its task must be 'other', got {gym!r}"):
        await ReasoningGym(task="other").reset(prompt, 0)
    last = ReasoningGym(attempts=1, task=gym)
    await last.reset(prompt, 0)
    assert (await last.step("<answer>x</answer>")).is_done


def test_prompts_are_written_as_data(gym, tmp_path, monkeypatch):
    file = tmp_path / "prompts.jsonl"
    monkeypatch.setattr(sys, "argv", ["x", gym, str(file), "--size", "4", "--seed", "9"])
    environment_module.main()
    written = [json.loads(line) for line in file.read_text().splitlines()]
    assert written == json.loads(json.dumps(rewards.rows(gym, size=4, seed=9)))


async def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", FakeGym)
    with pytest.raises(ConfigError, match=r"task 'nothing' of reasoning-gym .* not registered"):
        rewards.rows("nothing", size=1, seed=0)
    with pytest.raises(ConfigError, match="largest must be positive"):
        rewards.rows("sums", size=1, seed=0, largest=0)
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    rewards._dataset.cache_clear()
    with pytest.raises(ConfigError, match="need that package: pip install reasoning-gym"):
        rewards.rows("sums", size=1, seed=0)
    with pytest.raises(ConfigError, match="no column 'reasoning_gym' names a task"):
        await ReasoningGym().reset(Prompt(prompt_id="p", token_ids_T=(1,), text=""), 0)
    with pytest.raises(ConfigError, match="attempts must be at least 1, got 0"):
        ReasoningGym(attempts=0)


async def test_a_slow_verifier_lets_other_rollouts_go_on(gym, monkeypatch):
    [row] = rewards.rows(gym, size=1, seed=0)
    environment = ReasoningGym()
    prompt = Prompt(prompt_id="p", token_ids_T=(1,), text=row["prompt"], columns=row)
    await environment.reset(prompt, 0)
    others_went_on = threading.Event()
    monkeypatch.setattr(
        environment_module, "score", lambda *_: float(others_went_on.wait(timeout=10.0))
    )
    verified = asyncio.ensure_future(environment.step("<answer>x</answer>"))
    await asyncio.sleep(0)
    others_went_on.set()
    assert (await verified).reward == 1.0


@pytest.mark.parametrize(("attempts", "max_turns"), [({"attempts": 3}, 2), ({}, 1)])
def test_attempts_that_turns_do_not_suffice_for_are_refused(attempts, max_turns):
    words = rf"arguments.attempts: .* must not exceed max_turns \({max_turns}\), got"
    with pytest.raises(ValueError, match=words):
        EnvironmentConfig(reasoning_gym="sums", arguments=attempts, max_turns=max_turns)
    EnvironmentConfig(reasoning_gym="sums", arguments=attempts, max_turns=max_turns + 1)


def test_an_environment_is_a_task_by_its_name():
    config = EnvironmentConfig.model_validate(
        {"reasoning_gym": "chain_sum", "arguments": {"attempts": 3}}
    )
    made = environment_maker(config)()
    assert (made.task, made.attempts) == ("chain_sum", 3)
    with pytest.raises(ValueError, match="has one of path, reasoning_gym"):
        EnvironmentConfig(reasoning_gym="chain_sum", path="a:b")


def test_a_data_set_is_a_task_by_its_name(gym, tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_RAY_CACHE", str(tmp_path))
    path = f"reasoning_gym:{gym},size=4,seed=9"
    found = list(read_rows(SourceConfig(path=path)))
    assert [row.row_id for row in found] == [f"{gym}:{number}" for number in range(4)]
    made = json.loads(json.dumps(rewards.rows(gym, size=4, seed=9)))
    assert [dict(row.columns) for row in found] == made
    monkeypatch.setattr(rewards, "rows", None)  # what was made is kept
    assert len(list(read_rows(SourceConfig(path=path, limit=2)))) == 2


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("reasoning_gym:", "must name a task"),
        ("reasoning_gym:sums,size", "'size' must be name=value"),
        ("reasoning_gym:sums,size=0", "size must be a whole number, got 0"),
        ("reasoning_gym:sums,seed=x", "seed must be a whole number, got 'x'"),
        ("reasoning_gym:sums,width=3", r"task 'sums' of reasoning-gym with {\"width\": 3}"),
        ("reasoning_gym:nothing", "task 'nothing'"),
    ],
)
def test_a_task_that_cannot_be_made_is_named(path, words, tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_RAY_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "reasoning_gym", FakeGym)
    rewards._dataset.cache_clear()
    with pytest.raises(ConfigError, match=words):
        list(read_rows(SourceConfig(path=path)))


def test_the_package_is_missed_before_the_start(monkeypatch):
    monkeypatch.setattr(references.importlib.util, "find_spec", lambda name: None)
    assert "needs the package reasoning-gym" in references.data_fault("reasoning_gym:countdown")
    monkeypatch.setattr(references.importlib.util, "find_spec", lambda name: object())
    assert references.data_fault("reasoning_gym:countdown") is None
