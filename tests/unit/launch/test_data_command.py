"""`rlhf-ray data`: what it shows of each job's rows, what it refuses, and that it stays light."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from launch import cli
from rlhf_ray.config.tools.yaml_file import write_yaml

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PAIR = {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model without weights; one token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    marks = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(marks + symbols)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=marks[2:],
    )
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    shape = {"hidden_size": 64, "num_attention_heads": 2, "max_position_embeddings": 256}
    AutoConfig.for_model("llama", vocab_size=len(tokenizer), **shape).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def show(model, tmp_path, monkeypatch, capsys):
    """Runs the command on rows; returns the exit status, what it printed and its errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLHF_RAY_CACHE", str(tmp_path / "cache"))

    def run(job: str, rows: list[Any], *arguments: str, **settings: Any):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / "rows.jsonl").write_text(lines, encoding="utf-8")
        trained = "reward" if job == "rm" else "policy"
        settings = {"data": {"path": "rows.jsonl"}, trained: {"model": {"path": model}}} | settings
        write_yaml(settings, tmp_path / "job.yaml")
        status = cli.main(["data", job, "job.yaml", *arguments])
        printed = capsys.readouterr()
        assert not (tmp_path / "runs").exists()
        return status, printed.out, printed.err

    return run


ONLINE = {
    "reward": {"functions": [{"path": "rlhf_ray.rewards.gsm8k:correct_answer"}]},
    "rollout": {"max_new_tokens": 8},
}


def test_sft_shows_format_counts_lengths_and_which_tokens_are_trained(show):
    rows = [
        {"prompt": "2 + 2 =", "completion": " 4"},
        {"prompt": "1 + 2 =", "completion": " 3"},
        {"prompt": "9", "completion": ""},
        {"prompt": "9", "completion": " 3" * 200},
    ]
    data = {"path": "rows.jsonl", "over_length": "truncate"}
    status, out, err = show("sft", rows, "--rows", "1", data=data, max_length=64)
    assert status == 0
    assert "rows       4 read, 3 kept, 1 left out (25.0%), 1 truncated (33.3%)" in out
    assert "format     prompt_completion (prompt, completion)" in out
    assert "left out   1 empty answer (first rows.jsonl:3" in out
    assert "allowed    64 tokens (max_length), over_length truncate" in out
    assert "tokens     10 to 64 a row, median 10" in out
    assert "10-19  ████████████████████████████████████████  2\n" in out
    assert "60-64  ████████████████████                      1\n" in out
    assert "rows:0: 10 tokens, 3 trained\n2 + 2 =⟦ 4</s>⟧\n" in out
    assert "rows:1" not in out
    assert "Of the rows below, ⟦trained tokens⟧ are marked so.\n" in out
    assert not err  # the log would say the same again


def test_sft_shows_every_trained_turn_of_a_chat(show):
    turns = [("user", "Hi"), ("assistant", "Yes?"), ("user", "Bye"), ("assistant", "Bye!")]
    chat = [{"role": role, "content": content} for role, content in turns]
    _, out, _ = show("sft", [{"messages": chat}])
    assert (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yes?<|im_end|>⟧\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n⟦Bye!<|im_end|>⟧" in out
    )


def test_sft_counts_the_pieces_of_a_long_text(show):
    _, out, _ = show("sft", [{"text": "word " * 40}], max_length=64)
    assert "4 pieces of longer texts" in out


def test_rm_shows_margins_and_all_answers_of_a_ranking_from_the_best(show):
    rows = [{**PAIR, "margin": 1.5}]
    _, out, _ = show("rm", rows)
    assert "rows:0: chosen and rejected, margin 1.5\n" in out
    assert "⟦answers that are scored⟧ are marked so" in out
    assert "prompt, 7 tokens\n2 + 2 =\nchosen, 3 tokens\n⟦ 4</s>⟧\n" in out
    assert "rejected, 3 tokens\n⟦ 5</s>⟧\n" in out
    rows = [{"prompt": "2 + 2 =", "answers": [" 5", " 4", " 6"], "scores": [2, 3, 1]}]
    _, out, _ = show("rm", rows)
    assert "rows:0: 3 answers, the best first\n" in out
    assert "answer 1 of 3, 3 tokens\n⟦ 4</s>⟧\nanswer 2 of 3, 3 tokens\n⟦ 5</s>⟧" in out
    _, out, _ = show("rm", [{**rows[0], "scores": [2, 3, 2]}])
    assert "answer 1 of 3, 3 tokens\n⟦ 4</s>⟧\nanswer 2 of 3, tied, 3 tokens\n⟦ 5</s>⟧" in out
    assert "2 read, 1 kept, 1 left out (50.0%)\n  left out   1 tie" in out


def test_dpo_shows_pairs_and_held_out_ones(show):
    evaluation = {"data": {"path": "rows.jsonl", "limit": 1}}
    _, out, _ = show("dpo", [PAIR, PAIR], eval=evaluation)
    first, held_out = out.split("eval.data  rows.jsonl")
    assert "data  rows.jsonl\n  format     preference (prompt, chosen, rejected)\n" in first
    assert "rows       1 read, 1 kept\n" in held_out
    assert "rejected, 3 tokens\n⟦ 5</s>⟧\n" in held_out


def test_kto_shows_labels(show):
    rows = [
        {"prompt": "2 + 2 =", "completion": " 4", "label": True},
        {"prompt": "2 + 2 =", "completion": " 5", "label": False},
    ]
    _, out, _ = show("dpo", rows, loss_type=["kto"])
    assert "rows:0: labelled good\n" in out
    assert "good answer, 3 tokens\n⟦ 4</s>⟧\n" in out
    assert "rows:1: labelled bad\n" in out
    assert "bad answer, 3 tokens\n⟦ 5</s>⟧\n" in out
    status, _, err = show("dpo", rows[:1], loss_type=["kto"])
    assert status == 2
    assert "every answer is labelled good" in err


@pytest.mark.parametrize("job", ["grpo", "ppo", "sample"])
def test_online_jobs_show_prompts_and_the_columns_for_rewards(show, job):
    _, out, _ = show(job, [{"prompt": "2 + 2 =", "answer": "4", "level": 2}], **ONLINE)
    assert "allowed    248 tokens (the context), over_length auto" in out
    assert "rows:0: prompt\nthe policy goes on from 7 tokens\n2 + 2 =\n" in out
    assert 'reward functions get\n  prompt = "2 + 2 ="\n  answer = "4"\n  level = 2\n' in out


def test_prompts_that_rewards_cannot_score_are_counted(show):
    rows = [{"prompt": "2 + 2 =", "answer": "4"}, {"prompt": "Why?", "answer": "so"}]
    data = {"path": "rows.jsonl", "on_bad_row": "skip"}
    _, out, _ = show("grpo", rows, data=data, **ONLINE)
    assert "2 read, 1 kept, 1 left out" in out
    assert "left out   1 rewards cannot score it" in out


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "2 + 2 =", "answer": "4"}, "set data.columns: {prompt: question}"),
        ({"prompt": "2 + 2 =", "truth": "4"}, "needs 'answer', which is neither a column"),
    ],
)
def test_data_that_the_job_would_refuse_are_refused_in_its_words(show, row, message):
    status, _, err = show("grpo", [row], **ONLINE)
    assert status == 2
    assert message in " ".join(err.split())


def test_a_stream_shows_its_first_rows_and_says_so(show):
    rows = [{"prompt": f"{n} + 1 =", "completion": f" {n + 1}"} for n in range(2_000)]
    data = {"path": "rows.jsonl", "streaming": True}
    _, out, _ = show("sft", rows, "--rows", "2", data=data, total_steps=1)
    assert "a stream: these are the first alone, the others are not read" in out
    assert "format     prompt_completion (prompt, completion)" in out
    assert "rows:1: " in out
    assert "2,000 read" not in out
    # A fault behind what is read is none of this look's.
    assert show("sft", [*rows, {"prompt": 1}], data=data, total_steps=1)[0] == 0


def test_several_streams_show_rows_of_each(show, tmp_path):
    (tmp_path / "more.jsonl").write_text(json.dumps({"text": "Once"}) + "\n")
    sources = [{"path": "rows.jsonl"}, {"path": "more.jsonl"}]
    data = {"sources": sources, "streaming": True}
    _, out, _ = show("sft", [{"text": "Two"}], data=data, total_steps=1)
    assert "T⟦wo</s>⟧" in out
    assert "O⟦nce</s>⟧" in out


def test_rows_that_a_mixture_repeats_are_said(show, tmp_path):
    (tmp_path / "more.jsonl").write_text('{"text": "Once"}\n' * 50)
    sources = [{"path": "rows.jsonl", "probability": 9.0}, {"path": "more.jsonl"}]
    _, out, _ = show("sft", [{"text": "Two"}], data={"sources": sources})
    assert "51 read, 51 kept\n" in out
    counts = [int(count) for count in re.findall(r"█ +(\d+)\n", out)]
    assert sum(counts) > 300 and f"mixed to {sum(counts)}, as sources and data.mixing say" in out


def test_text_of_the_data_is_shown_and_not_obeyed(show):
    rows = [{"prompt": "[red]a[/red] :smile: \x1b[31mb\u202e", "completion": "[/] \x07\u2028c"}]
    _, out, _ = show("sft", rows)
    assert r"[red]a[/red] :smile: \x1b[31mb\u202e⟦[/] \x07\u2028c</s>⟧" in out
    assert not {"\x1b", "\x07", "\u202e", "\u2028"} & {*out}


def test_on_a_terminal_trained_tokens_have_a_colour(show, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    _, out, _ = show("sft", [{"prompt": "2 + 2 =", "completion": " 4"}])
    assert "\x1b[2m2 + 2 =\x1b[0m\x1b[1;32m 4</s>\x1b[0m" in out


def test_on_a_terminal_rows_that_are_lost_have_another(show, monkeypatch, tmp_path):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    rows = [{"prompt": "2", "completion": " 4"}, {"prompt": "9", "completion": ""}]
    _, out, _ = show("sft", rows, data={"path": str(tmp_path / "rows.jsonl")})
    assert "\x1b[33m2 read, 1 kept, 1 left out (50.0%)\x1b[0m" in out
    assert "\x1b[33m1 empty answer (first rows.jsonl:2)\x1b[0m" in out


def test_overrides_count_as_in_other_commands(show):
    rows = [{"text": "One"}, {"text": "Two"}]
    _, out, _ = show("sft", rows, "--data.limit", "1", "--rows", "9")
    assert "1 read, 1 kept" in out
    assert "rows:1" not in out


def test_what_the_demo_would_write_says_so(show, tmp_path):
    _, _, err = show("sft", [{"text": "One"}], policy={"model": {"path": "runs/demo/model"}})
    said = " ".join(err.split())
    assert "no tokenizer at 'runs/demo/model'" in said and "`make demo` writes it" in said
    _, _, err = show("sft", [], data={"path": "runs/demo/data/sft.jsonl"})
    said = " ".join(err.split())
    assert "no data at 'runs/demo/data/sft.jsonl'" in said and "`make demo` writes it" in said


def test_rows_must_be_a_number(show):
    with pytest.raises(SystemExit) as stopped:
        show("sft", [{"text": "One"}], "--rows", "few")
    assert stopped.value.code == 2


def test_a_pipeline_shows_each_stage_and_says_what_is_still_to_be_written(
    show, model, tmp_path, capsys
):
    show("sft", [{"text": "One"}])
    sft = {"data": {"path": "rows.jsonl"}, "policy": {"model": {"path": model}}}
    word = {"path": "rlhf_ray.rewards.contains:contains_word", "arguments": {"word": "One"}}
    sample = {
        **sft,
        **ONLINE,
        "reward": {"functions": [word]},
        "policy": {"model": {"path": "stage:first"}},
    }
    rm = {
        "data": {"path": "stage:pairs/pairs.jsonl"},
        "reward": {"model": {"path": "stage:first"}},
    }
    stages = [
        {"name": "first", "job": "sft", "set": sft},
        {"name": "pairs", "job": "sample", "set": sample},
        {"name": "rm", "job": "rm", "set": rm},
    ]
    write_yaml({"run_dir": "out", "stages": stages}, tmp_path / "pipeline.yaml")
    assert cli.main(["data", "pipeline", "pipeline.yaml"]) == 0
    out = capsys.readouterr().out
    assert "first: data  rows.jsonl\n" in out
    assert "O⟦ne</s>⟧" in out
    assert "pairs: data  rows.jsonl\n" in out
    assert 'prompt = "One"' in out
    place = tmp_path / "out" / "pairs" / "pairs.jsonl"
    assert f"rm: data  an earlier stage will write it: {place}\n" in out
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(PAIR) + "\n")
    assert cli.main(["data", "pipeline", "pipeline.yaml"]) == 0
    assert "chosen, 3 tokens\n⟦ 4</s>⟧" in capsys.readouterr().out


def test_help_lists_the_command_and_parsing_imports_nothing_heavy(capsys):
    assert cli.main(["--help"]) == 0
    assert "  data      A job's rows before it runs" in capsys.readouterr().out
    code = (
        "import sys, launch.data; launch.data.parser().parse_known_args(['sft', 'x.yaml']); "
        "print({'torch', 'ray', 'datasets', 'transformers'} & {*sys.modules})"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


def test_neither_ray_nor_engine_is_imported(show, tmp_path):
    show("grpo", [{"prompt": "2 + 2 =", "answer": "4"}], **ONLINE)
    code = (
        "import sys; from launch import cli; "
        "cli.main(['data', 'grpo', 'job.yaml', '--rows', '0']); "
        "print({'ray', 'vllm', 'deepspeed', 'actors'} & {*sys.modules})"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert "1 read, 1 kept" in found.stdout
    assert found.stdout.endswith("set()\n")
