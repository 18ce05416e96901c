"""A run is resumed only with the setup that its checkpoint was made with."""

from __future__ import annotations

import pytest
from fakes import make_config

from rlhf_ray.errors import ConfigError
from rlhf_ray.loops.checkpoints import CheckpointStore
from rlhf_ray.loops.setup import checkpoint_to_resume, setup_of


@pytest.fixture
def saved(tmp_path):
    """The configuration that a checkpoint of step 2 was made with."""
    config = make_config(tmp_path)
    store = CheckpointStore(tmp_path, keep=1)
    (store.begin(2) / "policy").mkdir()
    (store.root / ".writing_00000002/policy/weights").write_text("w")
    store.commit(2, {"setup": setup_of(config)}, roles=["policy"])
    return config


def resumed(config, **settings):
    return make_config(config.run_dir, resume="auto", **settings)


def test_the_same_setup_goes_on(saved):
    longer = resumed(saved, total_steps=99, prompts_per_step=7)
    checkpoint = checkpoint_to_resume(longer)
    assert checkpoint.step == 2
    assert (checkpoint.folder / "policy/weights").read_text() == "w"


def test_nothing_is_resumed_unasked_or_from_nothing(saved, tmp_path):
    assert checkpoint_to_resume(saved) is None
    assert checkpoint_to_resume(make_config(tmp_path / "new", resume="auto")) is None


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
        ({"seed": 5}, "seed was 0, is 5"),
        ({"algorithm": {"advantage": "grpo"}}, "placement.value.ranks was 1, is None"),
    ],
)
def test_what_the_checkpoint_cannot_follow_is_named(saved, settings, said):
    with pytest.raises(ConfigError) as caught:
        checkpoint_to_resume(resumed(saved, **settings))
    assert str(caught.value).startswith(f"the checkpoint in {saved.run_dir} cannot be resumed: ")
    assert said in str(caught.value)


def test_every_difference_is_named_at_once(saved):
    with pytest.raises(ConfigError, match=r"placement.policy.ranks was 1, is 2; seed was 0, is 5"):
        checkpoint_to_resume(resumed(saved, seed=5, placement={"policy": {"ranks": 2}}))
