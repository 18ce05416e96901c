"""Sampling without training: which pairs come of judged answers, and what is written."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from fakes import Company, Recorder, make_prompts

from rlhf_ray.config.sample import SampleConfig
from rlhf_ray.data.files import Row
from rlhf_ray.data.row_formats import recognise
from rlhf_ray.loops.evaluation import Evaluation
from rlhf_ray.loops.sampling import SampleLoop, pairs_of
from rlhf_ray.metrics import MetricsLog

ANSWERS = [("a", 0.0), ("b", 2.0), ("c", 2.0), ("d", 1.0)]


def sample_config(run_dir, *, total_steps):
    return SampleConfig.model_validate(
        {
            "run_dir": str(run_dir),
            "total_steps": total_steps,
            "prompts_per_step": 2,
            "samples_per_prompt": 2,
            "data": {"path": "prompts.jsonl", "shuffle": False},
            "policy": {"model": {"path": "model"}},
            "reward": {"functions": [{"path": "scorers:score"}]},
        }
    )


def scores_of(pairs):
    return [(p["chosen"], p["rejected"], p["score_chosen"], p["score_rejected"]) for p in pairs]


def test_the_extremes_make_a_pair():
    assert scores_of(pairs_of(ANSWERS, "best_worst")) == [("b", "a", 2.0, 0.0)]


def test_every_two_answers_that_differ_make_a_pair():
    chosen = {(p["chosen"], p["rejected"]) for p in pairs_of(ANSWERS, "all")}
    assert chosen == {("b", "d"), ("b", "a"), ("c", "d"), ("c", "a"), ("d", "a")}


@pytest.mark.parametrize("kind", ["best_worst", "all"])
def test_answers_that_score_alike_make_none(kind):
    assert list(pairs_of([("a", 1.0), ("b", 1.0)], kind)) == []


async def test_every_answer_is_written_and_a_pair_where_scores_differ(tmp_path):
    config = sample_config(tmp_path, total_steps=3)
    company, recorder = (
        Company(config, lambda prompt, sample: sample * (prompt != "p3")),
        Recorder(),
    )
    evaluation = Evaluation(config, make_prompts(2))
    roles = company.roles(value=False)
    loop = SampleLoop(config, roles, make_prompts(6), evaluation, MetricsLog([recorder]))
    await loop.run()

    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in samples] == [f"prompt {n // 2}" for n in range(12)]
    assert samples[1] == {"prompt": "prompt 0", "completion": "answer 1 to p0", "score": 1}
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert [pair["prompt"] for pair in pairs] == [f"prompt {n}" for n in (0, 1, 2, 4, 5)]
    assert pairs[0]["chosen"] == "answer 1 to p0"
    # The engine must sample from this job's weights, not from those it was started with.
    assert company.calls[:2] == ["rollout.wake_up", "policy.publish@0"]
    assert "policy.update" not in company.calls
    assert recorder.steps[0]["eval/reward_mean"] == 0.0  # one sample each, the first
    assert recorder.steps[2]["rollout/zero_spread_share"] == 0.5


async def test_the_prompts_own_answers_do_not_go_with_it(tmp_path):
    """Else the rows would be read as those answers: a pair, a ranking, a label of another text."""
    columns = {"chosen": "old", "rejected": "older", "label": True, "margin": 3.0, "topic": "dogs"}
    config = sample_config(tmp_path, total_steps=1)
    company = Company(config, lambda prompt, sample: sample)
    prompts = [replace(prompt, columns=columns) for prompt in make_prompts(2)]
    roles, log = company.roles(value=False), MetricsLog([Recorder()])
    await SampleLoop(config, roles, prompts, Evaluation(config, []), log).run()
    for name, expected in (("samples", "prompt_completion"), ("pairs", "preference")):
        row = json.loads((tmp_path / f"{name}.jsonl").read_text().splitlines()[0])
        assert row["topic"] == "dogs"
        assert row.get("chosen") != "old"
        assert "margin" not in row
        read = Row(row_id="x:0", where="x:1", columns=row)
        assert recognise(read, for_prompts=False).name == expected
