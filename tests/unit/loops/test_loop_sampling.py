"""Sampling without training: which pairs come of judged answers, and what is written."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from fake_companies import HurriedCompany
from fake_sink import FakeSink
from fakes import Company, CountedUsage, groups_of, make_prompts, make_rollout
from pydantic import ValidationError

from rlhf_ray.config.sample import SampleConfig
from rlhf_ray.data.formats.table import recognise
from rlhf_ray.data.row import Row
from rlhf_ray.errors import ConfigError
from rlhf_ray.loops.evaluation import Evaluation
from rlhf_ray.loops.sampling import Judged, SampleLoop, pairs_of
from rlhf_ray.loops.setup import checkpoint_to_resume
from rlhf_ray.metrics import MetricsLog
from rlhf_ray.metrics.usage import unknown_usage
from rlhf_ray.roles.groups import ScoredGroup
from rlhf_ray.types import Score

ANSWERS = [
    Judged(text=text, score=score, truncated=False)
    for text, score in [("a", 0.0), ("b", 2.0), ("c", 2.0), ("d", 1.0)]
]


def sample_config(run_dir, *, total_steps, **settings):
    return SampleConfig.model_validate(
        {
            "run_dir": str(run_dir),
            "total_steps": total_steps,
            "prompts_per_step": 2,
            "samples_per_prompt": 2,
            "data": {"path": "prompts.jsonl", "shuffle": False},
            "policy": {"model": {"path": "model"}},
            "reward": {"functions": [{"path": "scorers:score"}]},
            **settings,
        }
    )


def loop_of(config, company, *, prompts=None, held_out=0, recorder=None, usage=unknown_usage):
    return SampleLoop(
        config,
        company.roles(value=False),
        prompts or make_prompts(6),
        Evaluation(config, make_prompts(held_out)),
        MetricsLog([recorder or FakeSink()]),
        usage=usage,
    )


def written(run_dir, name):
    return [json.loads(line) for line in (run_dir / f"{name}.jsonl").read_text().splitlines()]


def scores_of(pairs):
    return [(p["chosen"], p["rejected"], p["score_chosen"], p["score_rejected"]) for p in pairs]


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"algorithm": {"kl": {"coefficient": 0.1}}}, "algorithm"),
        ({"algorithm": {"advantage": "gae"}}, "algorithm"),
        ({"algorithm": {"dynamic_sampling": {"enabled": True}}}, "algorithm"),
        ({"value": {"model": {"path": "critic"}}}, "value"),
        ({"empty_steps_to_stop": 3}, "empty_steps_to_stop"),
        ({"reference": {"model": {"path": "reference"}}}, "reference"),
        (
            {"reward": {"functions": [{"path": "scorers:score"}], "shaping": {"clip": 1.0}}},
            r"reward\.shaping",
        ),
    ],
)
def test_what_only_training_uses_is_refused(settings, key, tmp_path):
    with pytest.raises(ValidationError, match=f"{key}: sampling trains nothing"):
        sample_config(tmp_path, total_steps=1, **settings)


def test_no_role_starts_that_only_training_needs(tmp_path):
    config = sample_config(tmp_path, total_steps=1)
    assert set(config.groups) == {"policy", "rollout", "reward_worker"}
    dumped = config.model_dump(mode="json")
    assert SampleConfig.model_validate(dumped) == config


def test_the_extremes_make_a_pair():
    assert scores_of(pairs_of(ANSWERS, "best_worst")) == [("b", "a", 2.0, 0.0)]


def test_every_two_answers_that_differ_make_a_pair():
    chosen = {(p["chosen"], p["rejected"]) for p in pairs_of(ANSWERS, "all")}
    assert chosen == {("b", "d"), ("b", "a"), ("c", "d"), ("c", "a"), ("d", "a")}


@pytest.mark.parametrize("kind", ["best_worst", "all"])
def test_answers_that_score_alike_make_none(kind):
    assert list(pairs_of([ANSWERS[1], ANSWERS[2]], kind)) == []


def test_of_several_turns_all_messages_are_the_answer_and_can_be_read():
    turns = [
        (
            {"role": "assistant", "content": text},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "yes"},
        )
        for text in ("one", "two")
    ]
    answers = [
        Judged(text=str(score), score=score, truncated=False, messages=messages)
        for score, messages in zip((0.0, 1.0), turns, strict=True)
    ]
    [pair] = pairs_of(answers, "best_worst")
    assert (pair["chosen"], pair["rejected"]) == (list(turns[1]), list(turns[0]))
    asked = [{"role": "user", "content": "Which?"}]
    row = Row(row_id="pairs:0", where="pairs.jsonl:1", columns={"prompt": asked, **pair})
    [sample] = recognise(row, kinds={"preferences"}).read(row)
    assert [len(answer) for answer in sample.answers_K] == [3, 3]


def test_behind_a_string_prompt_an_environments_words_are_no_part_of_the_answer(tmp_path):
    config = sample_config(tmp_path, total_steps=1)
    loop = loop_of(config, Company(config, lambda prompt, sample: 1.0))
    rollouts_G = [
        replace(
            make_rollout(prompt, sample, 3),
            text=f"hm {sample}Sure?yes",
            messages=(
                {"role": "assistant", "content": f"hm {sample}"},
                {"role": "user", "content": "Sure?"},
                {"role": "assistant", "content": "yes"},
            ),
        )
        for prompt in make_prompts(1)
        for sample in (0, 1)
    ]
    [group] = groups_of(rollouts_G)
    scores_G = (Score(total=0.0), Score(total=1.0))
    samples, [pair] = loop._rows([ScoredGroup(group=group, scores_G=scores_G)], [rollouts_G])
    assert [row["completion"] for row in samples] == [list(r.messages) for r in rollouts_G]
    assert pair["chosen"] == list(rollouts_G[1].messages)
    assert pair["rejected"] == list(rollouts_G[0].messages)
    assert pair["prompt"] == [{"role": "user", "content": "prompt 0"}]
    row = Row(row_id="pairs:0", where="pairs.jsonl:1", columns=pair)
    [sample] = recognise(row, kinds={"preferences"}).read(row)
    assert [len(answer) for answer in sample.answers_K] == [3, 3]


async def test_it_is_said_that_there_are_no_pairs(tmp_path, caplog):
    config = sample_config(tmp_path, total_steps=1)
    await loop_of(config, Company(config, lambda prompt, sample: 1.0)).run(None)
    assert len(written(tmp_path, "samples")) == 4
    assert not written(tmp_path, "pairs")
    assert caplog.messages == ["no pairs: no two answers to one prompt differ in their score"]


async def test_every_answer_is_written_and_a_pair_where_scores_differ(tmp_path):
    config = sample_config(tmp_path, total_steps=3)
    company = Company(config, lambda prompt, sample: sample * (prompt != "p3"))
    recorder = FakeSink()
    loop = loop_of(config, company, held_out=2, recorder=recorder, usage=CountedUsage())
    await loop.run(None)

    samples = written(tmp_path, "samples")
    assert [row["prompt"] for row in samples] == [f"prompt {n // 2}" for n in range(12)]
    answer = {"draw": 0, "completion": "answer 1 to p0", "score": 1, "truncated": False}
    assert samples[1] == {"prompt": "prompt 0", **answer}
    pairs = written(tmp_path, "pairs")
    assert [pair["prompt"] for pair in pairs] == [f"prompt {n}" for n in (0, 1, 2, 4, 5)]
    assert pairs[0]["chosen"] == "answer 1 to p0"
    # The engine must sample from this job's weights, not from those it was started with.
    assert company.calls[:2] == ["rollout.wake_up(weights)", "policy.publish@0"]
    assert "policy.update" not in company.calls
    assert recorder.steps[0]["eval/reward_mean"] == 0.0  # one sample each, the first
    assert recorder.steps[2]["rollout/zero_spread_share"] == 0.5
    # What was asked first was the usage of starting, which belongs to no step.
    assert [recorder.steps[step]["wait/policy"] for step in (1, 2, 3)] == [2.0, 3.0, 4.0]


async def test_answers_without_a_score_are_written_and_in_no_pair(tmp_path):
    config = sample_config(tmp_path, total_steps=1, samples_per_prompt=3)
    scores = {("p0", 0): 0.5, ("p0", 2): 0.0, ("p1", 1): 9.0}
    recorder = FakeSink()
    company = Company(config, lambda *row: scores.get(row))
    await loop_of(config, company, recorder=recorder).run(None)
    found = [row["score"] for row in written(tmp_path, "samples")]
    assert found == [0.5, None, 0.0, None, 9.0, None]
    [pair] = written(tmp_path, "pairs")
    assert (pair["score_chosen"], pair["score_rejected"]) == (0.5, 0.0)
    assert recorder.steps[1]["rollout/unscored"] == 3


async def test_a_prompt_that_is_drawn_twice_makes_pairs_of_each_draw_alone(tmp_path):
    config = sample_config(tmp_path, total_steps=1)

    def score(prompt, sample):
        score.calls += 1
        return float(score.calls)

    score.calls = 0
    await loop_of(config, Company(config, score), prompts=make_prompts(1)).run(None)
    assert [(row["draw"], row["score"]) for row in written(tmp_path, "samples")] == [
        (0, 1.0), (0, 2.0), (1, 3.0), (1, 4.0)
    ]  # fmt: skip
    assert scores_of(written(tmp_path, "pairs")) == [
        ("answer 1 to p0", "answer 0 to p0", 2.0, 1.0),
        ("answer 1 to p0", "answer 0 to p0", 4.0, 3.0),
    ]


@pytest.mark.parametrize("better", [0, 1])
async def test_an_answer_that_was_cut_off_says_so(tmp_path, better):
    config = sample_config(tmp_path, total_steps=1)
    await loop_of(config, HurriedCompany(config, lambda prompt, sample: sample == better)).run(None)
    assert [row["truncated"] for row in written(tmp_path, "samples")] == [False, True] * 2
    pair = written(tmp_path, "pairs")[0]
    cut = (pair["truncated_chosen"], pair["truncated_rejected"])
    assert cut == (better == 1, better == 0)


async def test_the_prompts_own_answers_do_not_go_with_it(tmp_path):
    """Else the rows would be read as those answers: a pair, a ranking, a label of another text."""
    columns = {"chosen": "old", "rejected": "older", "label": True, "margin": 3.0, "topic": "dogs"}
    columns |= {"truncated": True, "truncated_chosen": True}
    config = sample_config(tmp_path, total_steps=1)
    company = Company(config, lambda prompt, sample: sample)
    prompts = [replace(prompt, columns=columns) for prompt in make_prompts(2)]
    await loop_of(config, company, prompts=prompts).run(None)
    for name, expected in (("samples", "prompt_completion"), ("pairs", "preference")):
        row = written(tmp_path, name)[0]
        assert row["topic"] == "dogs"
        assert row.get("chosen") != "old"
        assert "margin" not in row
        assert not row.get("truncated")
        assert not row.get("truncated_chosen")
        read = Row(row_id="x:0", where="x:1", columns=row)
        assert recognise(read, kinds={"examples", "preferences"}).name == expected


def spread(prompt, sample):
    return float(sample)


@pytest.fixture
async def cut(tmp_path):
    """A run of five steps whose rewards fail in the third, and half a row behind its results."""
    config = sample_config(tmp_path / "cut", total_steps=5, resume="auto")
    scored = []

    def score(prompt, sample):
        scored.append(prompt)
        if len(scored) > 8:
            raise OSError("power cut")
        return spread(prompt, sample)

    with pytest.raises(OSError, match="power cut"):
        await loop_of(config, Company(config, score)).run(None)
    with (tmp_path / "cut/pairs.jsonl").open("a") as file:
        file.write('{"prompt": "pro')
    return config


async def test_a_resumed_run_keeps_what_is_there_and_ends_like_an_undisturbed_one(cut, tmp_path):
    config = sample_config(tmp_path / "whole", total_steps=5)
    whole, recorded = Company(config, spread), FakeSink()
    await loop_of(config, whole, held_out=2, recorder=recorded).run(None)

    checkpoint = checkpoint_to_resume(cut, make_prompts(6))
    assert checkpoint.step == 2
    resumed, again = Company(cut, spread), FakeSink()
    await loop_of(cut, resumed, held_out=2, recorder=again).run(checkpoint)
    assert resumed.requests == whole.requests[-6:], "three steps of two prompts, none of the others"
    assert list(again.steps) == [3, 4, 5], "the held-out prompts were judged before the cut"
    for name in ("samples.jsonl", "pairs.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert len(written(tmp_path / "cut", "samples")) == 20

    finished = Company(cut, spread)
    await loop_of(cut, finished).run(checkpoint_to_resume(cut, make_prompts(6)))
    assert not finished.requests


async def test_a_run_without_a_checkpoint_begins_its_files_anew(tmp_path):
    config = sample_config(tmp_path, total_steps=1, resume="auto")
    (tmp_path / "samples.jsonl").write_text('{"prompt": "of an attempt that judged no step"}\n')
    assert checkpoint_to_resume(config, make_prompts(6)) is None
    await loop_of(config, Company(config, spread)).run(None)
    assert len(written(tmp_path, "samples")) == 4


async def test_files_that_lost_what_was_written_are_not_gone_on_with(cut, tmp_path):
    path = tmp_path / "cut/samples.jsonl"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2])
    company = Company(cut, spread)
    message = rf"samples\.jsonl must have at least the {size} bytes .* got {size // 2}"
    with pytest.raises(ConfigError, match=message):
        await loop_of(cut, company).run(checkpoint_to_resume(cut, make_prompts(6)))
    assert not company.calls


async def test_one_file_holds_one_kind_of_pairs(cut):
    with pytest.raises(ConfigError, match="pairs was 'best_worst', is 'all'"):
        checkpoint_to_resume(cut.model_copy(update={"pairs": "all"}), make_prompts(6))
