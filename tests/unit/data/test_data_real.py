"""The sets that people have: not one row is lost without a reason that is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from loads import load_labelled, load_pairs, load_prompts, load_rankings, load_sft

from rlhf_ray.config.data import DataConfig
from rlhf_ray.config.dpo import DpoConfig
from rlhf_ray.config.supervised import RmConfig
from rlhf_ray.data.chat.tokenizer import load_tokenizer
from rlhf_ray.data.rows.report import Loaded
from rlhf_ray.jobs.dpo import DPO
from rlhf_ray.jobs.rm import RM

HH = "hh-rlhf/helpful-base/test.jsonl.gz"
OASST = "preference/oasst_en_100_tree.jsonl"
EN, ZH = (f"preference/llamafactory_dpo_{language}_demo.json" for language in ("en", "zh"))


@pytest.fixture(scope="module")
def tokenizer(shared_data: Path) -> Any:
    return load_tokenizer(str(shared_data / "models/stories260K"), chat_template="vicuna")


def counts(loaded: Loaded[Any]) -> dict[str, int]:
    report = loaded.report
    left = {name: reason.count for name, reason in report.left_out.items()}
    assert report.num_kept == len(loaded.rows)
    assert report.num_read == report.num_kept + sum(left.values())
    return left


@pytest.mark.parametrize(
    ("max_length", "left"),
    [
        (100_000, {"equal answers": 2, "empty answer": 4}),
        (512, {"equal answers": 2, "empty answer": 4, "too long": 950}),
    ],
)
def test_hh_transcripts(
    shared_data: Path, tokenizer: Any, max_length: int, left: dict[str, int]
) -> None:
    config = DataConfig(path=str(shared_data / HH), over_length="drop")
    loaded = load_rankings(config, tokenizer, max_length=max_length)
    assert loaded.report.num_read == 2_354
    assert counts(loaded) == left
    for pair in loaded.rows[::50]:
        assert tokenizer.decode(pair.prompt_ids_T).endswith("\n\nAssistant:")
        assert all(answer[-1] == tokenizer.eos_token_id for answer in pair.answer_ids_K)


def test_hh_transcripts_as_chats(shared_data: Path, tokenizer: Any) -> None:
    config = DataConfig(path=str(shared_data / HH), chat=True, limit=300)
    loaded = load_pairs(config, tokenizer, max_length=100_000)
    assert loaded.report.num_read == 300
    prompts = load_prompts(config, tokenizer, context_tokens=100_000)
    by_id = {prompt.prompt_id: prompt for prompt in prompts.rows}
    for pair in loaded.rows:
        assert pair.prompt_ids_T.tolist() == list(by_id[pair.example_id].token_ids_T)


@pytest.mark.parametrize("name", [EN, ZH])
def test_pairs_in_english_and_chinese(shared_data: Path, tokenizer: Any, name: str) -> None:
    config = DataConfig(path=str(shared_data / name))
    pairs = load_pairs(config, tokenizer, max_length=100_000)
    assert (pairs.report.num_read, counts(pairs)) == (300, {})
    labelled = load_labelled(config, tokenizer, max_length=100_000)
    assert (labelled.report.num_read, counts(labelled)) == (600, {})
    rows = json.loads((shared_data / name).read_text())
    for row, pair in zip(rows, pairs.rows, strict=True):
        texts = (row["chosen"]["value"], row["rejected"]["value"])
        for text, answer_ids_T in zip(texts, pair.answer_ids_K, strict=True):
            assert tokenizer.decode(answer_ids_T, skip_special_tokens=True).strip() == text.strip()


def test_trees_of_replies(shared_data: Path, tokenizer: Any) -> None:
    config = DataConfig(path=str(shared_data / OASST))
    loaded = load_rankings(config, tokenizer, max_length=100_000)
    assert counts(loaded) == {"unranked replies": 2}
    assert len(loaded.rows) == 212
    sizes = [len(row.answer_ids_K) for row in loaded.rows]
    pairs = load_pairs(config, tokenizer, max_length=100_000)
    assert len(pairs.rows) == sum(size * (size - 1) // 2 for size in sizes)
    assert counts(pairs) == {"unranked replies": 2}
    assert len({pair.example_id for pair in pairs.rows}) == len(pairs.rows)


@pytest.mark.parametrize(
    ("name", "num_rows"),
    [("sft/self_instruct_seed_tasks.jsonl", 175), ("sft/llamafactory_identity.json", 91)],
)
def test_instructions(shared_data: Path, tokenizer: Any, name: str, num_rows: int) -> None:
    loaded = load_sft(DataConfig(path=str(shared_data / name)), tokenizer, max_length=100_000)
    assert (len(loaded.rows), counts(loaded)) == (num_rows, {})


def test_what_a_reward_model_job_loads(shared_data: Path, tmp_path: Path) -> None:
    hh = str(shared_data / HH)
    model = {"path": str(shared_data / "models/stories260K")}
    settings = {
        "reward": {"model": model},
        "run_dir": str(tmp_path),
        "data": {"path": hh, "split": "train[:60]", "over_length": "drop"},
        "eval": {"data": {"path": hh, "split": "train[-40:]", "over_length": "drop"}},
        "reference_rows": 10,
    }
    data = RM.load(RmConfig.model_validate(settings))
    assert len(data.reference_answers) == 10
    for ranking, answer in zip(data.eval_rows, data.reference_answers, strict=False):
        assert answer.prompt_ids_T.tolist() == ranking.prompt_ids_T.tolist()
        assert [ids.tolist() for ids in answer.answer_ids_K] == [ranking.answer_ids_K[0].tolist()]
    named = {**settings, "reference_data": {"path": str(shared_data / "gsm8k/test.jsonl"),
             "columns": {"prompt": "question", "completion": "answer"}, "limit": 5,
             "over_length": "drop"}}  # fmt: skip
    answers = RM.load(RmConfig.model_validate(named)).reference_answers
    assert [answer.example_id for answer in answers] == [f"test:{n}" for n in range(5)]


def test_what_a_dpo_job_loads(shared_data: Path, tmp_path: Path) -> None:
    settings = {
        "policy": {
            "model": {"path": str(shared_data / "models/stories260K"), "chat_template": "vicuna"}
        },
        "run_dir": str(tmp_path),
        "data": {"sources": [{"path": str(shared_data / name), "limit": 20} for name in (EN, ZH)],
                 "over_length": "truncate"},
    }  # fmt: skip
    pairs = DPO.load(DpoConfig.model_validate(settings))
    assert len(pairs.rows) >= 40 and not pairs.eval_rows
    assert {row.example_id.split(":")[0] for row in pairs.rows} == {
        "0/llamafactory_dpo_en_demo",
        "1/llamafactory_dpo_zh_demo",
    }
    assert all(len(row.prompt_ids_T) + len(row.answer_ids_K[0]) <= 512 for row in pairs.rows)
    again = DPO.load(DpoConfig.model_validate(settings))
    assert [row.example_id for row in pairs.rows] == [row.example_id for row in again.rows]
    labelled = DPO.load(DpoConfig.model_validate({**settings, "loss_type": ["kto"]}))
    assert {row.desirable for row in labelled.rows} == {True, False}
