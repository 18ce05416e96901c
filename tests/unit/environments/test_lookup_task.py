"""The task that the benchmark of learning in environments trains: what it shows, and its jobs."""

from __future__ import annotations

import json
import random

import pytest
from transformers import AutoTokenizer

from benchmarks.lookup import task
from benchmarks.lookup.__main__ import Learnt
from benchmarks.lookup.world import Lookup
from rlhf_ray.config.tools.stages import stages_of
from rlhf_ray.environments.protocol import message_roles
from rlhf_ray.types import Prompt

ROW = {"key": "k", "digit": "7"}


async def played(*answers):
    world = Lookup()
    await world.reset(Prompt(prompt_id="p", token_ids_T=(1,), text="key k", columns=ROW), 0)
    return [await world.step(answer) for answer in answers]


async def test_the_digit_is_told_to_whoever_asks_for_the_key():
    looked, other, said = await played("get k", "get x", "7")
    assert [looked.messages[0]["content"], other.messages[0]["content"]] == ["7", "?"]
    assert (looked.num_failed_calls, other.num_failed_calls) == (0, 1)
    assert said.is_done and said.reward == 1.0
    [guessed] = await played("3")
    assert guessed.is_done and guessed.reward == 0.0
    assert message_roles(Lookup()) == ("tool",)


def test_no_prompt_has_its_digit_and_demonstrations_seldom_do_all_of_it():
    made = random.Random(0)
    rows = [task._row(made) for _ in range(500)]
    assert not any(row["digit"] in row["prompt"][0]["content"] for row in rows)
    shown = [task._demonstration(made) for _ in range(2000)]
    right = [len(chat) == 4 and chat[-1]["content"] == chat[-2]["content"] for chat in shown]
    assert 0.3 < sum(right) / len(right) < 0.4


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_its_jobs_are_valid_and_its_template_ends_turns_by_a_token(algorithm, tmp_path):
    task.write_task(tmp_path, seed=0)
    sft, learns = stages_of(task.pipeline(tmp_path, algorithm, seed=0, steps=4))
    assert (sft.config.job, learns.config.job) == ("sft", algorithm)
    assert "reward" not in learns.config.groups
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    first = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])
    text = tokenizer.apply_chat_template(first["prompt"], tokenize=False)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_what_a_run_must_gain():
    assert Learnt(before=0.4, after=0.71, seconds=1).is_enough
    assert not Learnt(before=0.4, after=0.69, seconds=1).is_enough
