"""A run is resumed only with the setup that its checkpoint was made with."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from fakes import make_config, make_prompts

from rlhf_ray.errors import ConfigError
from rlhf_ray.loops.checkpoints import CheckpointStore
from rlhf_ray.loops.setup import checkpoint_to_resume, setup_of
from rlhf_ray.types import Ranking

ROWS = make_prompts(3)


@pytest.fixture
def saved(tmp_path):
    """The configuration that a checkpoint of step 2 was made with."""
    config = make_config(tmp_path)
    store = CheckpointStore(tmp_path, keep=1)
    with store.writing(2) as folder:
        (folder / "policy").mkdir()
        (folder / "policy/weights").write_text("w")
        store.commit(2, {"setup": setup_of(config, ROWS)}, roles=["policy"])
    return config


def resumed(config, **settings):
    return make_config(config.run_dir, resume="auto", **settings)


def test_the_same_setup_goes_on(saved):
    longer = resumed(saved, total_steps=99, prompts_per_step=7)
    checkpoint = checkpoint_to_resume(longer, ROWS)
    assert checkpoint.step == 2
    assert (checkpoint.folder / "policy/weights").read_text() == "w"


def test_how_many_workers_score_is_no_part_of_a_setup(saved):
    more = resumed(saved, placement={"reward_worker": {"ranks": 9}})
    assert setup_of(more, ROWS)["settings"] == setup_of(saved, ROWS)["settings"]


def test_nothing_is_resumed_unasked_or_from_nothing(saved, tmp_path):
    assert checkpoint_to_resume(saved, ROWS) is None
    assert checkpoint_to_resume(make_config(tmp_path / "new", resume="auto"), ROWS) is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"placement": {"policy": {"ranks": 2}}}, "placement.policy.ranks was 1, is 2"),
        ({"placement": {"value": {"ranks": 3}}}, "placement.value.ranks was 1, is 3"),
        (
            {"policy": {"model": {"path": "model"}, "zero": {"stage": 3}}},
            "policy.zero.stage was 0, is 3",
        ),
        ({"policy": {"model": {"path": "other"}}}, "policy.model.path was 'model', is 'other'"),
        (
            {"policy": {"model": {"path": "model", "chat_template": "chatml"}}},
            "policy.model.chat_template was '', is 'chatml'",
        ),
        (
            {"policy": {"model": {"path": "model", "revision": "v2"}}},
            "policy.model.revision was 'main', is 'v2'",
        ),
        (
            {"policy": {"model": {"path": "model", "dtype": "bfloat16"}}},
            "policy.model.dtype was 'auto', is 'bfloat16'",
        ),
        (
            {"policy": {"model": {"path": "model", "tokenizer": "other"}}},
            "policy.model.tokenizer was '', is 'other'",
        ),
        (
            {"algorithm": {"kl": {"controller": "adaptive"}}},
            "algorithm.kl.controller was 'fixed', is 'adaptive'",
        ),
        ({"seed": 5}, "seed was 0, is 5"),
        ({"algorithm": {"advantage": "grpo"}}, "placement.value.ranks was 1, is None"),
    ],
)
def test_what_the_checkpoint_cannot_follow_is_named(saved, settings, said):
    with pytest.raises(ConfigError) as caught:
        checkpoint_to_resume(resumed(saved, **settings), ROWS)
    assert str(caught.value).startswith(f"the checkpoint in {saved.run_dir} cannot be resumed: ")
    assert said in str(caught.value)


def test_every_difference_is_named_at_once(saved):
    with pytest.raises(ConfigError, match=r"placement.policy.ranks was 1, is 2; seed was 0, is 5"):
        checkpoint_to_resume(resumed(saved, seed=5, placement={"policy": {"ranks": 2}}), ROWS)


@pytest.mark.parametrize(
    "rows",
    [
        ROWS[::-1],
        [*ROWS[:2], replace(ROWS[2], prompt_id="another")],
        [*ROWS[:2], replace(ROWS[2], token_ids_T=(1, 3, 9))],
        [*ROWS[:2], replace(ROWS[2], columns={"answer": "4"})],
    ],
)
def test_other_rows_are_refused_also_where_there_are_as_many(saved, rows):
    with pytest.raises(ConfigError, match=r"the data's rows \(digest\) was '\w+', is '\w+'$"):
        checkpoint_to_resume(resumed(saved), rows)


def ranking(*last_answer):
    answers = (np.arange(2000, dtype=np.int32), np.array(last_answer, dtype=np.int32))
    return Ranking(example_id="r", prompt_ids_T=answers[0], answer_ids_K=answers)


def test_every_token_of_an_array_counts():
    changed = ranking(1, 2)
    changed.answer_ids_K[0][1000] = 7
    digests = [
        setup_of(make_config("run"), [row])["fixed"]["the data's rows (digest)"]
        for row in (ranking(1, 2), ranking(1, 2), ranking(1, 3), changed)
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_changes_that_are_allowed_are_logged_and_none_of_the_surroundings(saved, caplog):
    resumed_one = resumed(
        saved,
        total_steps=99,
        policy={"model": {"path": "model"}, "optim": {"lr": 0.5}},
        timeouts={"call_s": 7},
    )
    assert checkpoint_to_resume(resumed_one, ROWS).step == 2
    assert caplog.messages == [
        "the run goes on with other settings than before: "
        "policy.optim.lr was 1e-06, is 0.5; total_steps was 3, is 99"
    ]


def test_no_secret_is_in_a_checkpoint(tmp_path):
    remote = {"functions": [], "remote": {"url": "http://me:word@host/score"}}
    assert "me:word" not in json.dumps(setup_of(make_config(tmp_path, reward=remote), ROWS))
