"""Transcripts: what the engine was asked with and gave, and nothing else (row by row, by play)."""

from __future__ import annotations

import acting
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.data.chat.borders import written_tokens
from rlhf_ray.environments.play import Limits, play
from rlhf_ray.environments.protocol import Step
from rlhf_ray.environments.transcript import Transcript
from rlhf_ray.errors import GroupFailed
from rlhf_ray.types import Prompt

TEMPLATES = {family: acting.turn_template(family) for family in acting.FAMILIES}
LIMITS = Limits(max_turns=4, max_observation_tokens=64, timeout_s=30.0)
ASKS = {"role": "user", "content": "Which one?"}


class Scripted:
    """Gives prepared steps; keeps what it was told."""

    def __init__(self, steps):
        self.steps, self.told, self.seeds, self.num_closed = list(steps), [], [], 0

    async def reset(self, prompt, seed):
        self.seeds.append(seed)

    async def step(self, answer):
        self.told.append(answer)
        step = self.steps[len(self.told) - 1]
        if isinstance(step, BaseException):
            raise step
        return step

    async def close(self):
        self.num_closed += 1


def tool(content):
    return {"role": "tool", "name": "look", "tool_call_id": "call00000", "content": content}


@st.composite
def games(draw):
    """A family, turns as an engine may sample them, and what an environment says of each."""
    family = draw(st.sampled_from(sorted(TEMPLATES)))
    template = TEMPLATES[family]
    plain = st.integers(len(acting.MARKS), len(template.tokenizer) - 1)
    turns, steps = [], []
    for number in range(draw(st.integers(1, 4))):
        end = draw(st.sampled_from(sorted(template.end_ids)))
        turns.append([*draw(st.lists(plain, max_size=6)), end])
        steps.append(
            Step(
                messages=tuple(
                    map(tool, draw(st.lists(st.text(max_size=80), min_size=1, max_size=2)))
                ),
                reward=draw(st.none() | st.floats(-2, 2, allow_nan=False, width=32)),
                reward_if_last=draw(st.none() | st.floats(-2, 2, allow_nan=False, width=32)),
                is_done=draw(st.booleans()) if number else False,
                num_calls=draw(st.integers(0, 2)),
            )
        )
    return family, turns, steps, draw(st.integers(1, 30))


def expected_turns(turns, steps, budget):
    """How many turns are sampled, and whether the last of them was cut."""
    used = 0
    for number, (turn, step) in enumerate(zip(turns, steps, strict=True), start=1):
        if used + len(turn) > budget:
            return number, True
        used += len(turn)
        if step.is_done or number == LIMITS.max_turns or number == len(turns) or used == budget:
            return number, False
    raise AssertionError


@settings(max_examples=150, derandomize=True)
@given(game=games())
async def test_a_rollout_is_what_the_engine_was_asked_and_gave(game):
    family, turns, steps, budget = game
    steps[-1] = Step(reward=steps[-1].reward, is_done=True)
    template = TEMPLATES[family]
    prompt = acting.prompt_of(template, ASKS)
    engine, environment = acting.Engine(turns, template.end_ids), Scripted(steps)
    transcript = Transcript(
        prompt=prompt, draw=3, sample=1, max_new_tokens=budget, max_tokens=10_000
    )
    rollout = await play(environment, engine.sample, transcript, template, LIMITS, seed=7)

    num_turns, is_cut = expected_turns(turns, steps, budget)
    assert len(engine.gave) == len(rollout.turns) == num_turns
    assert (rollout.draw, rollout.sample, environment.seeds) == (3, 1, [7])
    assert environment.num_closed == 1
    # What each turn was asked with is the beginning of the whole, token by token.
    whole_T = [*prompt.token_ids_T, *rollout.response_ids_T.tolist()]
    ids_T, own_T = [], []
    for asked_T, gave in zip(engine.asked, engine.gave, strict=True):
        assert whole_T[: len(asked_T)] == asked_T
        assert asked_T[: len(ids_T)] == ids_T
        ids_T = [*asked_T, *gave.ids_T]
        own_T += range(len(asked_T), len(ids_T))
    assert whole_T == ids_T, "nothing stands behind the last turn"
    # Masks, log-probabilities and versions stand at the tokens that they are of.
    is_own_T = np.zeros(len(whole_T), dtype=bool)
    is_own_T[own_T] = True
    np.testing.assert_array_equal(rollout.action_mask_T, is_own_T[len(prompt.token_ids_T) :])
    for array, name, none in (
        (rollout.logprobs_T, "logprobs_T", 0.0), (rollout.versions_T, "versions_T", -1),
    ):  # fmt: skip
        given_T = [value for gave in engine.gave for value in getattr(gave, name)]
        np.testing.assert_allclose(array[rollout.action_mask_T], given_T, rtol=1e-6)
        assert (array[~rollout.action_mask_T] == none).all()
    # Rewards are those of the turns that the environment was told of; a cut turn is none.
    told = num_turns - is_cut
    assert len(environment.told) == told
    expected = [step.reward for step in steps[:told]]
    is_done = not is_cut and steps[num_turns - 1].is_done
    if told and not is_done and steps[told - 1].reward_if_last is not None:
        expected[-1] = steps[told - 1].reward_if_last
    assert [turn.reward for turn in rollout.turns] == [*expected, *[None] * is_cut]
    given = [reward for reward in expected if reward is not None]
    assert rollout.environment_reward == (sum(given) if given else None)
    assert [turn.num_tokens for turn in rollout.turns] == [len(gave.ids_T) for gave in engine.gave]
    assert rollout.messages[-1]["role"] == "assistant"
    assert rollout.finish_reason == ("stop" if is_done else "length")


async def test_an_answer_is_shown_as_it_was_sampled_without_its_end():
    template = TEMPLATES["qwen3"]
    tokenizer = template.tokenizer
    said = '<think>\nHm.\n</think>\n\n<tool_call>\n{"name": "look"}\n</tool_call>'
    turns = [written_tokens(tokenizer, f"{text}<|im_end|>") for text in (said, "It is 7.")]
    environment = Scripted([Step(messages=(tool("7" * 100),)), Step(is_done=True, reward=1.0)])
    engine = acting.Engine(turns, template.end_ids)
    transcript = Transcript(
        prompt=acting.prompt_of(template, ASKS), draw=0, sample=0,
        max_new_tokens=500, max_tokens=10_000,
    )  # fmt: skip
    rollout = await play(environment, engine.sample, transcript, template, LIMITS, seed=0)
    assert environment.told == [said, "It is 7."]
    cut = "7" * 64 + "\n[cut after 64 tokens: 36 characters more]"
    assert [(m["role"], m["content"]) for m in rollout.messages] == [
        ("assistant", said), ("tool", cut), ("assistant", "It is 7."),
    ]  # fmt: skip
    assert rollout.text == (
        f"{said}<|im_end|>\n<|im_start|>user\n<tool_response>\n{cut}\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\nIt is 7."
    )
    assert rollout.environment_reward == 1.0


async def test_tokens_are_not_encoded_again():
    """`aba` has a token of its own; a policy that sampled its letters is asked behind these."""
    template = TEMPLATES["qwen2.5"]
    letters = [template.tokenizer.convert_tokens_to_ids(letter) for letter in "aba"]
    assert written_tokens(template.tokenizer, "aba") != letters
    end = written_tokens(template.tokenizer, "<|im_end|>")
    engine = acting.Engine([letters + end, end], template.end_ids)
    environment = Scripted([Step(messages=(tool("x"),)), Step(is_done=True)])
    transcript = Transcript(
        prompt=acting.prompt_of(template, ASKS), draw=0, sample=0, max_new_tokens=9, max_tokens=999
    )
    await play(environment, engine.sample, transcript, template, LIMITS, seed=0)
    num_prompt = len(engine.asked[0])
    assert engine.asked[1][num_prompt : num_prompt + 4] == letters + end


async def test_a_context_that_is_full_ends_a_rollout():
    template = TEMPLATES["qwen2.5"]
    prompt = acting.prompt_of(template, ASKS)
    end = written_tokens(template.tokenizer, "<|im_end|>")
    engine = acting.Engine([end] * 3, template.end_ids)
    environment = Scripted([Step(messages=(tool("x"),))] * 3)
    transcript = Transcript(
        prompt=prompt, draw=0, sample=0, max_new_tokens=50, max_tokens=len(prompt.token_ids_T) + 5
    )
    rollout = await play(environment, engine.sample, transcript, template, LIMITS, seed=0)
    assert rollout.response_ids_T.tolist() == end and rollout.finish_reason == "length"


@pytest.mark.parametrize(
    ("step", "cause"),
    [(LookupError("lost"), "LookupError: lost"), (TimeoutError("slow"), "TimeoutError: slow")],
)
async def test_an_environment_that_fails_is_named_and_closed(step, cause):
    template = TEMPLATES["qwen2.5"]
    end = written_tokens(template.tokenizer, "<|im_end|>")
    environment = Scripted([step])
    transcript = Transcript(
        prompt=acting.prompt_of(template, ASKS), draw=5, sample=2, max_new_tokens=9, max_tokens=999
    )
    with pytest.raises(GroupFailed) as failed:
        engine = acting.Engine([end], template.end_ids)
        await play(environment, engine.sample, transcript, template, LIMITS, seed=0)
    assert str(failed.value) == f"environment (draw 5, sample 2, prompt 'p'): turn 1: {cause}"
    assert environment.num_closed == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [("", "refuses it: an empty message"), ("\ud800", "TypeError")],
)
async def test_messages_that_cannot_be_shown_fail_the_group(content, words):
    raising = (
        "{% for m in messages %}{% if not m.content %}"
        "{{ raise_exception('refuses it: an empty message') }}{% endif %}{% endfor %}"
    )
    template = acting.of_tokenizer(acting.byte_tokenizer(raising + acting.CHATML), ["<|im_end|>"])
    environment = Scripted([Step(messages=({"role": "user", "content": content},))])
    end = written_tokens(template.tokenizer, "<|im_end|>")
    transcript = Transcript(
        prompt=acting.prompt_of(template, ASKS), draw=5, sample=2, max_new_tokens=9, max_tokens=999
    )
    words = rf"draw 5, sample 2, prompt 'p'\): turn 1: its messages cannot be shown: .*{words}"
    with pytest.raises(GroupFailed, match=words) as failed:
        engine = acting.Engine([end], template.end_ids)
        await play(environment, engine.sample, transcript, template, LIMITS, seed=0)
    assert failed.value.cause == "raised" and environment.num_closed == 1


@pytest.mark.parametrize("is_late", [True, False])
async def test_a_whole_rollout_is_taken_though_its_end_is_late(is_late, caplog):
    class Ends(Scripted):
        async def close(self):
            if not is_late:
                raise OSError("no")
            raise GroupFailed.of("close: no answer", cause="hung")

    template = TEMPLATES["qwen2.5"]
    end = written_tokens(template.tokenizer, "<|im_end|>")
    transcript = Transcript(
        prompt=acting.prompt_of(template, ASKS), draw=5, sample=2, max_new_tokens=9, max_tokens=999
    )
    environment, engine = Ends([Step(is_done=True)]), acting.Engine([end], template.end_ids)
    playing = play(environment, engine.sample, transcript, template, LIMITS, seed=0)
    if is_late:
        assert (await playing).finish_reason == "stop"
        assert "close: no answer; its rollout is whole" in caplog.text
    else:
        with pytest.raises(GroupFailed, match="close: OSError: no"):
            await playing


def test_a_transcript_refuses_what_no_engine_gives():
    def begun():
        return Transcript(
            prompt=Prompt(prompt_id="p", token_ids_T=(1, 2), text=""),
            draw=0, sample=0, max_new_tokens=3, max_tokens=9,
        )  # fmt: skip

    with pytest.raises(ValueError, match=r"must be as many, got \(2, 1, 2\)"):
        begun().own([1, 2], [0.0], [0, 0], "")
    with pytest.raises(ValueError, match="must have 1 to 3 tokens, got 4"):
        begun().own([1] * 4, [0.0] * 4, [0] * 4, "")
    with pytest.raises(ValueError, match="must have 1 to 3 tokens, got 0"):
        begun().own([], [], [], "")
    with pytest.raises(ValueError, match="must come of a turn, got none"):
        begun().came_of_it(Step(is_done=True), ())
    with pytest.raises(ValueError, match="must have a turn, got none"):
        begun().rollout("stop", decode=str)
    transcript = begun()
    transcript.own([1], [0.0], [0], "")
    with pytest.raises(ValueError, match="must stand between two turns, got none"):
        transcript.own([1], [0.0], [0], "")


def test_a_step_goes_on_or_ends():
    with pytest.raises(ValueError, match="must have a message, got none"):
        Step()
    with pytest.raises(ValueError, match="must be finite, got nan"):
        Step(is_done=True, reward=float("nan"))
