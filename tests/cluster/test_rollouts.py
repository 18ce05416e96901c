"""What the engine samples: the same for a seed, ended for a reason, with true log-probabilities."""

from __future__ import annotations

import asyncio
import itertools

import numpy as np
import pytest
import ray
import torch
import vllm._custom_ops  # noqa: F401  (vLLM's kernels)
from jobs import STOP_STRING, STOP_TOKEN, arrays_of, rollouts_of, start_roles
from transformers import AutoModelForCausalLM

from actors.engines.draws import draw
from actors.engines.samples import Ending
from rlhf_ray.data.chat.tokenizer import load_tokenizer
from rlhf_ray.deadlines import DeadlineError
from rlhf_ray.errors import RunError
from rlhf_ray.loops.publication import publish
from rlhf_ray.roles.groups import GenerationRequest
from rlhf_ray.rollouts.feed import sample_all
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
        await publish(roles, VERSION)
        return roles

    return asyncio.run(start())


NEXT_DRAW = itertools.count()


def request(tokenizer, text, seeds, *, temperature=1.0, max_new_tokens=24):
    token_ids = tokenizer(text)["input_ids"]
    return GenerationRequest(
        prompt=Prompt(prompt_id=f"test:{text}", token_ids_T=tuple(token_ids), text=text),
        draw=next(NEXT_DRAW),
        seeds_G=tuple(seeds),
        temperature=temperature,
        max_new_tokens=max_new_tokens,
    )


def sampled(roles, requests):
    return asyncio.run(sample_all(roles.rollout, requests))


def sample(roles, requests):
    rollouts = rollouts_of(sampled(roles, requests))
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


def test_groups_come_in_the_order_of_requests_and_hold_their_samples(roles, requests):
    groups = sampled(roles, requests)
    assert [group.draw for group in groups] == [request.draw for request in requests]
    assert [group.prompt for group in groups] == [request.prompt for request in requests]
    rollouts = rollouts_of(groups)
    wanted = [(r.prompt.prompt_id, sample) for r in requests for sample in (0, 1)]
    assert [(r.prompt.prompt_id, r.sample) for r in rollouts] == wanted
    summaries_B = [summary for group in groups for summary in group.summaries_G]
    for summary, rollout in zip(summaries_B, rollouts, strict=True):
        assert summary.sample == rollout.sample
        assert summary.num_prompt_tokens == len(rollout.prompt.token_ids_T)
        assert summary.num_response_tokens == len(rollout.response_ids_T)
        assert (
            summary.num_action_tokens == rollout.action_mask_T.sum() == len(rollout.action_mask_T)
        )
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


def test_a_token_is_drawn_by_its_probabilities_seed_and_position(roles, requests, stories):
    """By nothing that an engine remembers: another one, or another process, draws the same."""
    model = AutoModelForCausalLM.from_pretrained(stories)
    seeds = [seed for one in requests for seed in one.seeds_G]
    for rollout, seed in zip(sample(roles, requests), seeds, strict=True):
        response, num = rollout.response_ids_T.tolist(), len(rollout.response_ids_T)
        ids_1T = torch.tensor([[*rollout.prompt.token_ids_T, *response]])
        with torch.no_grad():
            logits_TV = model(ids_1T).logits[0, -num - 1 : -1].float().contiguous()
        drawn = draw(logits_TV, np.full(num, seed, np.uint64), np.arange(num, dtype=np.uint64))
        assert drawn.tolist() == response


def test_another_seed_gives_another_sample(roles, tokenizer):
    rollouts = sample(roles, [request(tokenizer, "Once upon a time", range(8))])
    assert len({tuple(rollout.response_ids_T) for rollout in rollouts}) > 4


def test_temperature_0_is_greedy(roles, tokenizer):
    rollouts = sample(roles, [request(tokenizer, "Once upon a time", [1, 2], temperature=0.0)])
    assert rollouts[0].response_ids_T.tolist() == rollouts[1].response_ids_T.tolist()
    assert rollouts[0].text.startswith(", there was a little girl named Lily")


def test_log_probabilities_are_the_trainers(roles, requests):
    groups = sampled(roles, requests)
    [said] = asyncio.run(roles.policy.logprobs(groups, ["policy"]))
    trainer = arrays_of(said, groups)
    for rollout, ours in zip(rollouts_of(groups), trainer, strict=True):
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
    ray.get(replica.admit.remote(many, ending, 60.0, True), timeout=60)
    _, rollouts = ray.get(replica.finished.remote(many[0].draw), timeout=120)
    ended = [r for r in rollouts if r.response_ids_T[-1] == STOP_TOKEN]
    assert ended
    for rollout in ended:
        assert rollout.finish_reason == "stop"
        assert STOP_TOKEN not in rollout.response_ids_T[:-1]
        whole = tokenizer.decode([*rollout.prompt.token_ids_T, *rollout.response_ids_T[:-1]])
        assert whole == f"<s> One day{rollout.text}"


def test_the_controller_holds_no_tokens(roles, requests):
    groups = sampled(roles, requests)
    assert all(isinstance(group.rollouts, ray.ObjectRef) for group in groups)
    assert not any(hasattr(summary, "response_ids_T") for g in groups for summary in g.summaries_G)


ENDLESS = Ending(ignore_eos=True)


def num_running(replica):
    asked = replica.__ray_call__.remote(lambda it: len(it.engine.output_processor.request_states))
    return ray.get(asked, timeout=60)


def test_requests_of_a_group_that_is_late_are_ended(roles, tokenizer):
    replica = roles.rollout.actors.actors[0]
    late = request(tokenizer, "Once upon a time", range(64), max_new_tokens=400)
    ray.get(replica.admit.remote([late], ENDLESS, 0.3, True), timeout=60)
    message = r"the answer to test:Once upon a time/\d+: no answer from .*/rollout/0 after 0 s"
    for _ in range(2):  # it can be asked again
        with pytest.raises(DeadlineError, match=message):
            ray.get(replica.finished.remote(late.draw), timeout=60)
    assert num_running(replica) == 0


@pytest.fixture(autouse=True)
def nothing_left(roles):
    """Draws of other tests, and of jobs on the same engine, have the same numbers."""
    yield
    for replica in roles.rollout.actors.actors:
        ray.get(replica.drop_requests.remote(), timeout=60)


def test_a_group_ends_alone(roles, tokenizer):
    """One is dropped: its requests end, the others are answered, and again when asked again."""
    replica = roles.rollout.actors.actors[0]
    dropped = request(tokenizer, "One day", range(8), max_new_tokens=400)
    other = request(tokenizer, "Lily", range(2), max_new_tokens=60)
    ray.get(replica.admit.remote([dropped, other], ENDLESS, 60.0, True), timeout=60)
    with pytest.raises(RunError, match=rf"samples draws \[{other.draw}\] already"):
        ray.get(replica.admit.remote([other], ENDLESS, 60.0, True), timeout=60)
    waiting = replica.finished.remote(dropped.draw)
    answered = replica.finished.remote(other.draw)
    ray.get(replica.drop.remote([dropped.draw]), timeout=60)
    with pytest.raises(RunError, match=f"draw {dropped.draw} was dropped"):
        ray.get(waiting, timeout=60)
    _, rollouts = ray.get(answered, timeout=60)
    assert [len(r.response_ids_T) for r in rollouts] == [60, 60]
    _, again = ray.get(replica.finished.remote(other.draw), timeout=60)
    assert [r.response_ids_T.tolist() for r in again] == [
        r.response_ids_T.tolist() for r in rollouts
    ]
    assert num_running(replica) == 0
    with pytest.raises(RunError, match=f"asked for draw {dropped.draw}, which it does not sample"):
        ray.get(replica.finished.remote(dropped.draw), timeout=60)


def test_an_engine_answers_beside_more_groups_than_an_actor_has_calls_by_default(roles, tokenizer):
    replica = roles.rollout.actors.actors[0]
    many = [request(tokenizer, "Lily", [n], max_new_tokens=400) for n in range(1100)]
    draws = [one.draw for one in many]
    ray.get(replica.admit.remote(many, ENDLESS, 60.0, True), timeout=60)
    waiting = [replica.finished.remote(draw) for draw in draws]
    assert len(ray.get(replica.ask_workers.remote("report_peak_memory_gb"), timeout=60)) == 1
    assert len(ray.wait(waiting, num_returns=1100, timeout=0)[1]) > 1000
    ray.get(replica.drop.remote(draws), timeout=60)
    with pytest.raises(RunError, match="was dropped"):
        ray.get(waiting, timeout=60)
    assert num_running(replica) == 0


def test_no_bit_depends_on_what_was_sampled_before_with_the_same_weights(roles, tokenizer):
    """A round of requests that share a prefix with those before it, and one that is the first.

    A run that goes on has the second where the undisturbed one had the first: behind a round that
    it takes from the journal, or an evaluation.
    """
    prefix = "Once upon a time there was a little girl named Lily. She liked to play outside. " * 8
    texts = [prefix + end for end in ("One day", "The sun", "Her mom said", "A dog", "Then Tom")]

    def round_of(texts, seeds):
        return sample(roles, [request(tokenizer, text, seeds) for text in texts])

    assert len(tokenizer(prefix)["input_ids"]) > 128, "a block of the cache"
    round_of(texts[:1], [1])
    later = round_of(texts[1:], [2, 3, 4])
    asyncio.run(publish(roles, VERSION + 1))
    first = round_of(texts[1:], [2, 3, 4])
    for one, other in zip(later, first, strict=True):
        np.testing.assert_array_equal(one.response_ids_T, other.response_ids_T)
        np.testing.assert_array_equal(one.logprobs_T, other.logprobs_T)
