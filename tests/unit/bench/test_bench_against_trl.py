"""Comparisons with TRL: the model that ends answers by itself, turns, and what is made of them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.against_trl.__main__ import result_of
from benchmarks.against_trl.cases import CASES
from benchmarks.against_trl.gate import Enough
from benchmarks.against_trl.models import END, SHAPE, SPECIAL, TOKENIZER, save_model, word_tokenizer
from benchmarks.against_trl.ours import in_turns
from benchmarks.against_trl.rewards import share_of_even_words
from benchmarks.against_trl.texts import prompts
from benchmarks.against_trl.turns import Turn
from rlhf_ray.config.jobs import JOB_CONFIGS
from rlhf_ray.jobs.table import JOBS


def end_probabilities(folder):
    torch.manual_seed(5)
    contexts_BT = torch.randint(len(SPECIAL), SHAPE["vocab_size"], (8, 200))
    with torch.no_grad():
        probabilities_BTV = AutoModelForCausalLM.from_pretrained(folder)(contexts_BT).logits
    return probabilities_BTV.softmax(-1)[..., END]


def test_an_answer_ends_with_the_same_probability_everywhere(tmp_path):
    found_BT = end_probabilities(save_model(tmp_path, word_tokenizer(), end_probability=1 / 64))
    assert float(found_BT.mean()) == pytest.approx(1 / 64, rel=0.05)
    assert float(found_BT.std() / found_BT.mean()) < 0.5


def test_without_one_no_answer_ends(tmp_path):
    assert float(end_probabilities(save_model(tmp_path, word_tokenizer())).max()) < 1e-9


def test_a_prompt_has_as_many_tokens_as_it_shall(tmp_path):
    save_model(tmp_path, word_tokenizer())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / TOKENIZER)
    made = prompts(3, 37, repeated=2)
    assert [len(tokenizer(row["prompt"])["input_ids"]) for row in made] == [37] * 6
    assert made[0] == made[1] != made[2]
    assert 0.0 < share_of_even_words([made[0]["prompt"]])[0] < 1.0


@pytest.mark.parametrize("name", CASES)
def test_a_case_is_a_job_that_can_be_run(name, tmp_path, shared_data):
    case = CASES[name]
    made = case.make(tmp_path, 2, True)
    config = JOB_CONFIGS[case.job].model_validate(made.config)
    assert JOBS[case.job].prepare(config).data.trained_rows, "rows, tokenizer and models are read"
    assert config.total_steps == made.theirs["settings"]["max_steps"] == 2
    assert config.learner.optim.lr == made.theirs["settings"]["learning_rate"]


def turn(seconds, num_tokens=0, idle_cpu_s=0.0):
    return Turn(seconds=seconds, cpu_s=2 * seconds, num_tokens=num_tokens, idle_cpu_s=idle_cpu_s)


def test_the_ratio_is_the_median_of_pairs():
    turns = [(turn(4.0), turn(2.0)), (turn(9.0), turn(3.0)), (turn(4.0), turn(4.0))]
    result = result_of(CASES["dpo"], turns)
    assert (result["ratio"], result["cpu_ratio"], result["goal"]) == (2.0, 2.0, 2.0)
    assert result["holds"]
    assert [pair["ratio"] for pair in result["pairs"]] == [2.0, 3.0, 1.0]


def test_packed_steps_are_compared_by_their_tokens():
    result = result_of(CASES["sft"], [(turn(2.0, num_tokens=1000), turn(1.0, num_tokens=500))])
    assert result["ratio"] == 1.0
    assert not result["holds"]


def test_a_side_that_works_in_the_others_turn_is_told():
    with pytest.raises(RuntimeError, match="should have rested took 50% of a processor"):
        result_of(CASES["rm"], [(turn(4.0, idle_cpu_s=2.0), turn(2.0))])


async def test_steps_wait_at_the_gate_when_a_turn_is_over_and_nothing_is_under_way():
    passed, prepared = [], []

    class Gate:
        def pass_turn(self, *, num_tokens):
            passed.append((num_tokens, len(prepared)))
            if len(passed) == 2:
                raise Enough

    class Loop:
        """Prepares a batch beside each step, as those of supervised jobs do."""

        ahead = None

        def __init__(self, config, data, roles, log, usage):
            self.usage = usage

        async def run(self):
            await self.usage()
            for step in range(6):
                self.ahead = asyncio.ensure_future(self.prepare(step))
                await self.usage()

        async def prepare(self, step):
            await asyncio.sleep(0.01)
            prepared.append(step)

    async def usage():
        return {}

    config = SimpleNamespace(batch_size=2, timeouts=SimpleNamespace(call_s=5.0))
    data = SimpleNamespace(rows=[SimpleNamespace(num_tokens=number) for number in range(20)])
    loop = in_turns(Loop, Gate(), 3)(config, data, None, None, usage)
    with pytest.raises(Enough):
        await loop.run()
    assert [num_tokens for num_tokens, _ in passed] == [sum(range(6)), sum(range(6, 12))]
    assert [num for _, num in passed] == [3, 6]
