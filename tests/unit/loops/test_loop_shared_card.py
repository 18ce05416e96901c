"""One GPU for all roles: who is on it when, through whole runs of the loops."""

from __future__ import annotations

import pytest
from fake_sink import FakeSink
from fakes import Company, make_config, make_prompts
from shared_card import Card, roles_on

from rlhf_ray.config.sample import SampleConfig
from rlhf_ray.errors import RunError
from rlhf_ray.loops.checkpoints import CheckpointStore
from rlhf_ray.loops.evaluation import Evaluation
from rlhf_ray.loops.online import OnlineLoop
from rlhf_ray.loops.sampling import SampleLoop
from rlhf_ray.loops.stopping import Stop
from rlhf_ray.metrics import MetricsLog

GUEST = {"share": "policy", "gpus_per_rank": 1}
ON_ONE_GPU = {
    "policy": {"gpus_per_rank": 1},
    **dict.fromkeys(("rollout", "reward", "reference", "value"), GUEST),
}
ON_ONE = {"placement": ON_ONE_GPU, "reward": {"model": {"path": "rm"}}}


def loop_on(card, config, company, *, held_out=0):
    return OnlineLoop(
        config,
        roles_on(card, company),
        make_prompts(10),
        Evaluation(config, make_prompts(held_out)),
        MetricsLog([FakeSink()]),
    )


def by_sample(prompt_id, sample):
    return float(sample)


async def test_a_step_hands_the_card_from_engines_to_learners_and_back(tmp_path):
    config = make_config(tmp_path, total_steps=1, **ON_ONE)
    card, company = Card(), Company(config, by_sample)
    loop = loop_on(card, config, company)
    await loop.run(None)
    publication = ["+rollout.weights", "+policy.weights", "-policy.weights", "+rollout.kv_cache"]
    assert card.moves[:4] == publication
    left = ["sleep 2", "-rollout.weights", "-rollout.kv_cache"]
    assert card.moves[4:7] == left
    roles = ("policy", "reference", "value", "reward")
    assert sorted(card.moves[7:11]) == sorted(f"+{role}.weights" for role in roles)
    assert sorted(card.moves[11:13]) == ["-reference.weights", "-reward.weights"]
    assert card.moves[13:17] == [
        "+policy.states",
        "-policy.states",
        "+value.states",
        "-value.states",
    ]
    assert card.moves[17:19] == ["-value.weights", "+rollout.weights"]
    # They were there since they were trained.
    assert card.moves[19:21] == ["-policy.weights", "+rollout.kv_cache"]
    assert card.moves[21:24] == left, "for the checkpoint, after which nobody samples"
    assert not card.held


@pytest.mark.parametrize("at", ["rollout.generate@2", "reward.score"])
async def test_a_run_that_is_stopped_makes_room_for_its_checkpoint(tmp_path, at):
    dynamic = {"dynamic_sampling": {"enabled": True, "max_rounds": 5}}
    config = make_config(tmp_path, algorithm=dynamic, **ON_ONE)
    stop, card = Stop(), Card()

    class Asking(Company):
        def said(self, call):
            super().said(call)
            if call == at and self.version == 2:
                stop.ask()

    loop = loop_on(card, config, company := Asking(config, by_sample))
    with pytest.raises(KeyboardInterrupt):
        await loop.run(None, stop)
    assert company.calls[-2:] == ["policy.save", "value.save"]
    assert not card.held
    found = CheckpointStore(tmp_path, keep=2).latest()
    assert found is not None and found.step == 2


@pytest.mark.parametrize("dynamic", [False, True])
async def test_a_whole_run_fits_on_the_card(tmp_path, dynamic):
    sampling = {"dynamic_sampling": {"enabled": dynamic, "max_rounds": 5}}
    config = make_config(
        tmp_path,
        eval={"every": 1, "data": {"path": "x"}},
        checkpoint={"every": 1, "keep": 9},
        algorithm=sampling,
        **ON_ONE,
    )
    flat = {"p1"} if dynamic else set()
    company = Company(config, lambda prompt, sample: 0.0 if prompt in flat else float(sample))
    await loop_on(Card(), config, company, held_out=2).run(None)
    assert company.num_updates == 3


async def test_engines_keep_their_weights_for_what_is_sampled_after_a_checkpoint(tmp_path):
    config = make_config(tmp_path, total_steps=2, checkpoint={"every": 1}, **ON_ONE)
    card = Card()
    await loop_on(card, config, Company(config, by_sample)).run(None)
    sleeps = [move for move in card.moves if move.startswith("sleep")]
    assert sleeps == ["sleep 2", "sleep 1", "sleep 2", "sleep 2"]


async def test_a_resumed_run_fits_on_the_card(tmp_path):
    config = make_config(tmp_path, checkpoint={"every": 2, "keep": 9}, **ON_ONE)
    card = Card()
    await loop_on(card, config, Company(config, by_sample)).run(None)
    checkpoint = CheckpointStore(tmp_path, keep=9).latest()
    loop = loop_on(card, config, Company(config, by_sample))
    await loop.run(checkpoint)  # all steps are done: the engines leave before the export
    assert not card.held


async def test_engines_keep_their_weights_where_no_publication_follows(tmp_path):
    config = SampleConfig.model_validate(
        {
            "run_dir": str(tmp_path),
            "total_steps": 2,
            "prompts_per_step": 2,
            "samples_per_prompt": 2,
            "data": {"path": "prompts.jsonl"},
            "policy": {"model": {"path": "model"}},
            "placement": {role: ON_ONE_GPU[role] for role in ("policy", "rollout", "reward")},
            "reward": ON_ONE["reward"],
        }
    )
    card, company = Card(), Company(config, by_sample)
    loop = SampleLoop(
        config,
        roles_on(card, company),
        make_prompts(10),
        Evaluation(config, make_prompts(2)),
        MetricsLog([FakeSink()]),
    )
    await loop.run(None)
    assert "sleep 1" in card.moves
    assert "sleep 2" not in card.moves
    assert "+reward.weights" in card.moves


async def test_a_failed_publication_leaves_engines_that_do_not_sample(tmp_path):
    config = make_config(tmp_path, **ON_ONE)
    card, company = Card(), Company(config, by_sample)
    loop = loop_on(card, config, company)

    async def fail(version):
        raise RunError("policy/0 is gone")

    company.publish = fail
    with pytest.raises(RunError, match="policy/0 is gone"):
        await loop.run(None)
    with pytest.raises(AssertionError, match="sample from nothing"):
        await loop.roles.rollout.generate([])
