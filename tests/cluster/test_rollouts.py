"""What the engine samples: the same for a seed, ended for a reason, with true log-probabilities."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import ray
from jobs import STOP_STRING, STOP_TOKEN, start_roles

from actors.engines.ending import Ending
from actors.ranks.rank import collect
from rlhf_ray.data.tokenizer import load_tokenizer
from rlhf_ray.deadlines import DeadlineError
from rlhf_ray.roles import GenerationRequest
from rlhf_ray.types import Prompt

VERSION = 7
END_OF_STORY = 1  # `<s>`: what stories260K writes between stories


@pytest.fixture(scope="module")
def tokenizer(stories):
    return load_tokenizer(str(stories), chat_template="", trust_remote_code=False)


@pytest.fixture(scope="module")
def roles(pool, make_config, tmp_path_factory):
    config = make_config(tmp_path_factory.mktemp("rollouts"))

    async def start():
        roles = await start_roles(config, pool)
        await roles.policy.publish(VERSION)
        return roles

    return asyncio.run(start())


def request(tokenizer, text, seeds, *, temperature=1.0, max_new_tokens=24):
    token_ids = tokenizer(text)["input_ids"]
    return GenerationRequest(
        prompt=Prompt(prompt_id=f"test:{text}", token_ids_T=tuple(token_ids), text=text),
        draw=0,
        seeds_G=tuple(seeds),
        temperature=temperature,
        max_new_tokens=max_new_tokens,
    )


def rollouts_of(batch):
    return collect(batch.shards, len(batch.summaries_B), timeout_s=30)


def sample(roles, requests):
    rollouts = rollouts_of(asyncio.run(roles.rollout.generate(requests)))
    assert len(rollouts) == sum(len(request.seeds_G) for request in requests) > 0
    return rollouts


@pytest.fixture(scope="module")
def requests(tokenizer):
    texts = [
        "Once upon a time",
        "The cat",
        "One day a big dog met",
        "Lily",
        "It was a sunny day and",
    ]
    return [request(tokenizer, text, [10 * n, 10 * n + 1]) for n, text in enumerate(texts)]


def test_rows_come_in_the_order_of_requests_then_samples(roles, requests):
    batch = asyncio.run(roles.rollout.generate(requests))
    rollouts = rollouts_of(batch)
    wanted = [(r.prompt.prompt_id, sample) for r in requests for sample in (0, 1)]
    assert [(r.prompt.prompt_id, r.sample) for r in rollouts] == wanted
    for summary, rollout in zip(batch.summaries_B, rollouts, strict=True):
        assert (summary.prompt_id, summary.sample) == (rollout.prompt.prompt_id, rollout.sample)
        assert summary.num_prompt_tokens == len(rollout.prompt.token_ids_T)
        assert summary.num_response_tokens == len(rollout.response_ids_T)
        assert summary.num_own_tokens == rollout.own_T.sum() == len(rollout.own_T)
        assert summary.version_min == summary.version_max == VERSION
        assert np.all(rollout.versions_T == VERSION)


def test_the_same_requests_give_the_same_bits(roles, requests):
    first, second = sample(roles, requests), sample(roles, requests)
    for a, b in zip(first, second, strict=True):
        assert a.response_ids_T.tolist() == b.response_ids_T.tolist()
        assert a.logprobs_T.tobytes() == b.logprobs_T.tobytes()


def test_a_seed_gives_its_sample_in_any_company(roles, requests):
    together = sample(roles, requests)
    alone = [rollout for one in requests for rollout in sample(roles, [one])]
    backwards = sample(roles, requests[::-1])
    reordered = {(r.prompt.prompt_id, r.sample): r for r in backwards}
    for a, b in zip(together, alone, strict=True):
        assert a.response_ids_T.tolist() == b.response_ids_T.tolist()
        other = reordered[a.prompt.prompt_id, a.sample]
        assert a.response_ids_T.tolist() == other.response_ids_T.tolist()


def test_another_seed_gives_another_sample(roles, tokenizer):
    rollouts = sample(roles, [request(tokenizer, "Once upon a time", range(8))])
    assert len({tuple(rollout.response_ids_T) for rollout in rollouts}) > 4


def test_temperature_0_is_greedy(roles, tokenizer):
    rollouts = sample(roles, [request(tokenizer, "Once upon a time", [1, 2], temperature=0.0)])
    assert rollouts[0].response_ids_T.tolist() == rollouts[1].response_ids_T.tolist()
    assert rollouts[0].text.startswith(", there was a little girl named Lily")


def test_log_probabilities_are_the_trainers(roles, requests):
    batch = asyncio.run(roles.rollout.generate(requests))
    shards = asyncio.run(roles.policy.logprobs(batch))
    trainer = collect(shards, len(batch.summaries_B), timeout_s=30)
    for rollout, ours in zip(rollouts_of(batch), trainer, strict=True):
        assert len(ours) == len(rollout.logprobs_T) == len(rollout.response_ids_T)
        np.testing.assert_allclose(rollout.logprobs_T, ours, atol=1e-4)
        assert np.all(rollout.logprobs_T < 0)


def test_a_response_ends_for_one_of_its_reasons(roles, tokenizer):
    many = request(tokenizer, "One day", range(48), max_new_tokens=12)
    rollouts = sample(roles, [many])
    seen = set()
    for rollout in rollouts:
        *before, last = rollout.response_ids_T.tolist()
        assert STOP_TOKEN not in before
        assert STOP_STRING not in tokenizer.decode(before)
        if rollout.finish_reason == "length":
            assert len(rollout.response_ids_T) == 12
            assert last != STOP_TOKEN
            seen.add("length")
        elif last == STOP_TOKEN:
            seen.add("token")  # and it is part of the response
        else:
            assert STOP_STRING in rollout.text
            seen.add("string")
    assert seen == {"length", "token", "string"}


def test_the_end_token_is_part_of_the_response(roles, tokenizer, shared_data):
    texts = (shared_data / "text/tinystories_sample.txt").read_text().split("<|endoftext|>")
    whole = [text.strip() for text in texts if len(text) < 600][:4]
    rollouts = sample(roles, [request(tokenizer, text, [3], temperature=0.0) for text in whole])
    ended = [r for r in rollouts if r.response_ids_T.tolist() == [END_OF_STORY]]
    assert ended
    assert all(r.finish_reason == "stop" and r.text == "" for r in ended)


def test_a_token_that_ends_a_turn_ends_a_response_and_is_not_in_its_text(roles, tokenizer):
    replica = roles.rollout.actors.actors[0]
    many = [request(tokenizer, "One day", range(24))]
    ending = Ending(end_token_ids=(STOP_TOKEN,))
    _, answered = replica.generate.options(num_returns=2).remote(many, ending, 60.0)
    rollouts = ray.get(answered, timeout=120)
    ended = [r for r in rollouts if r.response_ids_T[-1] == STOP_TOKEN]
    assert ended
    for rollout in ended:
        assert rollout.finish_reason == "stop"
        assert STOP_TOKEN not in rollout.response_ids_T[:-1]
        whole = tokenizer.decode([*rollout.prompt.token_ids_T, *rollout.response_ids_T[:-1]])
        assert whole == f"<s> One day{rollout.text}"


def test_the_controller_holds_no_tokens(roles, requests):
    batch = asyncio.run(roles.rollout.generate(requests))
    assert all(isinstance(shard.ref, ray.ObjectRef) for shard in batch.shards)
    assert not any(hasattr(summary, "response_ids_T") for summary in batch.summaries_B)


def test_requests_of_a_call_that_is_late_are_ended(roles, tokenizer):
    replica = roles.rollout.actors.actors[0]
    endless = Ending(ignore_eos=True)
    asked = [request(tokenizer, "Once upon a time", range(64), max_new_tokens=400)]
    late = r"the answer to test:Once upon a time/\d+: no answer from .*/rollout/0 after 0 s"
    with pytest.raises(DeadlineError, match=late):
        ray.get(replica.generate.remote(asked, endless, 0.3), timeout=60)
    running = replica.__ray_call__.remote(lambda it: len(it.engine.output_processor.request_states))
    assert ray.get(running, timeout=60) == 0
