"""A reward model gives a text the logit that transformers gives it, whatever it is batched with."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    RobertaForSequenceClassification,
)

from rlhf_ray.config.rewards import RewardModelConfig
from rlhf_ray.data.chat.answers import tokenize_answer
from rlhf_ray.data.chat.tokenizer import vocabulary_digest
from rlhf_ray.errors import ConfigError
from rlhf_ray.learner.deepspeed.engine import DeepSpeedBuilder
from rlhf_ray.learner.reward_scorer import RewardScorer, forward_config
from rlhf_ray.models.reward_statistics import write_statistics
from rlhf_ray.types import Prompt, Rollout

CPU = torch.device("cpu")
CHAT = "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
THINKS = (
    "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' %}"
    "{{ '<think>\n' + (m.content.split('</think>')[0].split('<think>')[-1] if '</think>' in "
    "m.content else '') + '\n</think>\n\n' + m.content.split('</think>')[-1] + eos_token }}"
    "{% else %}{{ m.content + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
# Of many lengths, so that every batch is padded; one prompt is empty, one completion as well.
TEXTS = [
    ("Once upon a time", " there was a little dog."),
    ("Lily", " ran."),
    ("", "The end"),
    ("Tom saw a big red ball in the park and", " he wanted it so much that he began to cry aloud."),
    ("The sun was hot.", ""),
    ("Why?", " Because it rained, and then it rained again."),
]
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.5,  # so that logits of different texts are far apart
    "num_labels": 3,
}


@pytest.fixture(scope="module")
def decoder(stories, tmp_path_factory):
    """Its configuration names no pad token, its tokenizer pads on the left."""
    folder = tmp_path_factory.mktemp("decoder")
    tokenizer = AutoTokenizer.from_pretrained(stories)
    assert tokenizer.padding_side == "left"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), pad_token_id=None, **SMALL)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(make_encoder):
    return make_encoder(separates=False, max_position_embeddings=200, **SMALL)


@pytest.fixture(params=["decoder", "encoder"])
def folder(request):
    return request.getfixturevalue(request.param)


def make_rollout(prompt, completion):
    """Its token ids are another tokenizer's: the reward model must go by the text."""
    return Rollout(
        prompt=Prompt(prompt_id="p", token_ids_T=(1, 2, 3), text=prompt),
        draw=0,
        sample=0,
        response_ids_T=np.array([7, 7], dtype=np.int32),
        logprobs_T=np.zeros(2, dtype=np.float32),
        versions_T=np.zeros(2, dtype=np.int32),
        action_mask_T=np.ones(2, dtype=np.bool_),
        finish_reason="stop",
        text=completion,
    )


ROLLOUTS = [make_rollout(prompt, completion) for prompt, completion in TEXTS]


def scorer_of(config, **keywords):
    return RewardScorer(config, DeepSpeedBuilder(forward_config(config), CPU), **keywords)


def reward_model(folder, **settings):
    return scorer_of(RewardModelConfig(path=str(folder), **settings))


def values(scores):
    return [score.value for score in scores]


def tokens_of(prompt, completion, tokenizer):
    prompt_ids_T, answer_ids_T = tokenize_answer(tokenizer, prompt, completion)
    return [*prompt_ids_T, *answer_ids_T]


def plain_logits(folder, token_ids_BT, label):
    """Of one row at a time: nothing is padded, nothing is masked."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return [
            float(model(input_ids=torch.tensor([token_ids_T])).logits[0, label])
            for token_ids_T in token_ids_BT
        ]


def plain_scores(folder, label=0):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokens_of(prompt, completion, tokenizer) for prompt, completion in TEXTS]
    assert len({len(row) for row in ids}) > 4
    return plain_logits(folder, ids, label)


@pytest.mark.parametrize("label", [0, 2])
@pytest.mark.parametrize("budget", [1, 40, 100_000], ids=["alone", "some", "all together"])
def test_a_score_is_transformers_logit(folder, budget, label):
    expected = plain_scores(folder, label)
    assert np.ptp(expected) > 0.1, "texts must differ or nothing is tested"
    model = reward_model(folder, label=label, max_tokens_per_micro_batch=budget)
    assert values(model.score(ROLLOUTS)) == pytest.approx(expected, abs=1e-5)


def test_scores_follow_their_rows_in_any_order_and_company(folder):
    expected = plain_scores(folder)
    model = reward_model(folder, max_tokens_per_micro_batch=150)
    for rows in ([5, 3, 1, 0, 4, 2], [2], [4, 4, 0], []):
        scores = values(model.score([ROLLOUTS[row] for row in rows]))
        assert scores == pytest.approx([expected[row] for row in rows], abs=1e-5)


def test_samples_of_a_group_share_their_prompt(decoder):
    prompt = "One day, a little girl named Lily went to the park with her mother and"
    group = [make_rollout(prompt, text) for text in (" ran.", " sat down.", " saw a big dog.")]
    model = reward_model(decoder)
    alone = [values(model.score([rollout]))[0] for rollout in group]
    taken = []
    model.model.transformer().get_input_embeddings().register_forward_pre_hook(
        lambda module, inputs: taken.append(inputs[0].numel())
    )
    assert values(model.score(group)) == pytest.approx(alone, abs=1e-5)
    texts = [model._tokenize(rollout) for rollout in group]
    num_shared = 2 * texts[0].num_prompt_tokens
    assert taken == [sum(len(text.ids_T) for text in texts) - num_shared]


def test_a_chat_is_written_with_the_models_own_template(folder):
    messages = [{"role": "user", "content": "Hello"}]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT
    token_ids = tokens_of(messages, "Good day", tokenizer)
    text = "[user] Hello\n[assistant] Good day\n"
    assert token_ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    [expected] = plain_logits(folder, [token_ids], 0)
    model = reward_model(folder, chat_template=CHAT)
    rollouts = [make_rollout(messages, "Good day"), ROLLOUTS[3]]
    assert values(model.score(rollouts))[0] == pytest.approx(expected, abs=1e-5)


def test_a_string_prompt_is_a_users_turn_where_training_had_it_so(folder):
    text, chat = "Why?", [{"role": "user", "content": "Why?"}]
    model = reward_model(folder, chat=True, chat_template=CHAT)
    rollouts = [make_rollout(text, "So."), make_rollout(chat, "So.")]
    as_text, as_chat = values(model.score(rollouts))
    assert as_text == pytest.approx(as_chat, abs=1e-6)
    [plain] = values(reward_model(folder).score([make_rollout(text, "So.")]))
    assert abs(plain - as_text) > 1e-6


def test_a_response_that_was_cut_off_has_no_end(folder):
    whole = make_rollout("Lily", " ran.")
    cut = replace(whole, finish_reason="length")
    model = reward_model(folder)
    tokens = [model._tokenize(rollout).ids_T.tolist() for rollout in (whole, cut)]
    assert tokens[0][-1] == model.tokenizer.eos_token_id
    assert tokens[1] == tokens[0][:-1]


def sampled(tokenizer, prompt, pieces, *, is_ended):
    """A response of the very pieces, in the tokenizer's own vocabulary."""
    ids = [tokenizer.convert_tokens_to_ids(piece) for piece in pieces]
    rollout = make_rollout(prompt, "".join(pieces).replace("▁", " "))
    response_ids_T = np.array([*ids, *([tokenizer.eos_token_id] * is_ended)], dtype=np.int32)
    finish_reason = "stop" if is_ended else "length"
    return replace(rollout, response_ids_T=response_ids_T, finish_reason=finish_reason)


@pytest.mark.parametrize("is_ended", [True, False])
def test_in_the_policys_vocabulary_the_sampled_tokens_are_scored(decoder, is_ended):
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    pieces = ["▁t", "ime"]  # which the tokenizer itself would write as one
    assert len(tokenizer("time", add_special_tokens=False)["input_ids"]) == 1
    rollout = sampled(tokenizer, "Once upon a", pieces, is_ended=is_ended)
    expected = [*tokenizer("Once upon a")["input_ids"], *rollout.response_ids_T.tolist()]
    config = RewardModelConfig(path=str(decoder))
    own = scorer_of(config, vocabulary=vocabulary_digest(tokenizer))
    assert own._tokenize(rollout).ids_T.tolist() == expected
    assert values(own.score([rollout])) == pytest.approx(
        plain_logits(decoder, [expected], 0), abs=1e-5
    )
    other = scorer_of(config, vocabulary="another")
    assert len(other._tokenize(rollout).ids_T) == len(expected) - 1


@pytest.mark.parametrize("known", [True, False])
def test_reasoning_that_was_cut_off_is_scored_as_it_was_sampled(decoder, known):
    """A template that parses reasoning would close it, and write an empty one in front."""
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    text = "<think>\nlet me"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    rollout = replace(
        make_rollout([{"role": "user", "content": "Why?"}], text),
        response_ids_T=np.array(ids, dtype=np.int32),
        finish_reason="length",
    )
    model = scorer_of(
        RewardModelConfig(path=str(decoder), chat_template=THINKS),
        vocabulary=vocabulary_digest(tokenizer) if known else "another",
    )
    shown = tokenizer.decode(model._tokenize(rollout).ids_T)
    assert shown.endswith("assistant: <think>\nlet me" if known else "assistant:<think>\nlet me")
    assert shown.count("<think>") == 1 and "</think>" not in shown


@pytest.mark.parametrize("shows", [True, False])
def test_tools_of_a_prompt_stand_before_it_where_the_template_has_a_place(decoder, shows):
    template = "{% for t in tools or [] %}<{{ t.function.name }}>{% endfor %}" * shows + CHAT
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    rollout = make_rollout([{"role": "user", "content": "Why?"}], "So.")
    prompt = replace(rollout.prompt, columns={"tools": [tool]})
    model = reward_model(decoder, chat_template=template)
    shown = model.tokenizer.decode(model._tokenize(replace(rollout, prompt=prompt)).ids_T)
    assert ("<add>[user] Why?" in shown) == shows
    assert "[user] Why?" in shown


def test_a_text_is_cut_at_max_length(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    token_ids = tokens_of(*TEXTS[3], tokenizer)
    assert len(token_ids) > 10
    [expected] = plain_logits(folder, [token_ids[:10]], 0)
    [score] = reward_model(folder, max_length=10).score([ROLLOUTS[3]])
    assert score.value == pytest.approx(expected, abs=1e-5)
    assert score.is_cut
    [whole] = reward_model(folder, max_length=len(token_ids)).score([ROLLOUTS[3]])
    assert not whole.is_cut


def test_a_text_is_cut_where_the_model_has_no_more_positions(make_encoder):
    """RoBERTa's begin behind the padding token: 14 of them hold 12 tokens."""
    folder = make_encoder(separates=False, max_position_embeddings=14, **SMALL)
    token_ids = tokens_of(*TEXTS[3], AutoTokenizer.from_pretrained(folder))
    assert len(token_ids) > 12
    for settings in ({}, {"max_length": 13}):
        [score] = reward_model(folder, **settings).score([ROLLOUTS[3]])
        [expected] = plain_logits(folder, [token_ids[:12]], 0)
        assert score.value == pytest.approx(expected, abs=1e-5)
        assert score.is_cut


def test_a_tokenizer_may_come_from_elsewhere(encoder, tmp_path):
    RobertaForSequenceClassification.from_pretrained(encoder).save_pretrained(tmp_path)
    model = reward_model(tmp_path, tokenizer=str(encoder))
    assert values(model.score(ROLLOUTS)) == pytest.approx(plain_scores(encoder), abs=1e-5)


def test_a_label_that_the_model_lacks_is_named(folder):
    with pytest.raises(ConfigError, match="must be below the model's 3 labels, got 3"):
        reward_model(folder, label=3)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        reward_model(tmp_path / "nowhere")


def test_a_folder_without_a_model_is_named(encoder, tmp_path):
    with pytest.raises(ConfigError, match=f"cannot load a reward model from '{tmp_path}'"):
        reward_model(tmp_path, tokenizer=str(encoder))


def test_a_file_of_weights_that_was_cut_short_is_named(encoder, tmp_path):
    RobertaForSequenceClassification.from_pretrained(encoder).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=f"cannot load a reward model from '{tmp_path}'"):
        reward_model(tmp_path, tokenizer=str(encoder))


def test_a_model_that_never_learned_to_score_is_refused(decoder, tmp_path):
    config = LlamaConfig.from_pretrained(decoder)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"lacks the weights score\.weight"):
        reward_model(tmp_path, tokenizer=str(decoder))


def test_scores_are_centred_and_scaled_by_what_training_stored(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    raw = values(reward_model(tmp_path).score(ROLLOUTS))
    with pytest.raises(ConfigError, match=r"reward\.model\.normalize needs .*set normalize: none"):
        reward_model(tmp_path, normalize="center")
    write_statistics(tmp_path, mean=0.25, std=0.5)
    centred = values(reward_model(tmp_path, normalize="center").score(ROLLOUTS))
    assert centred == pytest.approx([score - 0.25 for score in raw])
    scaled = values(reward_model(tmp_path, normalize="standardize").score(ROLLOUTS))
    assert scaled == pytest.approx([(score - 0.25) / 0.5 for score in raw])
    assert values(reward_model(tmp_path).score(ROLLOUTS)) == raw
    write_statistics(tmp_path, mean=0.25, std=0.0)
    with pytest.raises(ConfigError, match="needs a spread above 0"):
        reward_model(tmp_path, normalize="standardize")


def test_a_model_that_is_there_already_is_not_loaded_again(decoder, tmp_path):
    model = reward_model(decoder).model.train()
    scorer = scorer_of(RewardModelConfig(path=str(decoder)), model=model)
    assert values(scorer.score(ROLLOUTS)) == pytest.approx(plain_scores(decoder), abs=1e-5)
    assert not model.training, "it is read from now on"
