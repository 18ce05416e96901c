"""The command `rlhf-ray plan`: what it prints and refuses, and that it imports nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from plan_jobs import EIGHT_B, MODELS, ROOT

from launch import cli

GRPO = """
data: {path: rows.jsonl, max_prompt_tokens: 512}
policy: {model: {path: MODEL, gradient_checkpointing: true}, zero: {stage: 3}}
reward: {functions: [{path: "m:f"}]}
rollout: {max_new_tokens: 1024, max_model_len: 2048}
placement:
  policy: {ranks: 4, gpus_per_rank: 1}
  rollout: {ranks: 4, gpus_per_rank: 1}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(MODELS[EIGHT_B]))
    (tmp_path / "local.yaml").write_text(GRPO.replace("MODEL", "model"))
    (tmp_path / "hub.yaml").write_text(GRPO.replace("MODEL", EIGHT_B))
    return tmp_path


WORKERS = ["--placement.reward_worker.ranks", "3"]


def test_a_job_that_fits(folder, capsys):
    assert cli.main(["plan", "grpo", "local.yaml", *WORKERS]) == 0
    printed = capsys.readouterr().out
    assert "0     GPU 0-3  policy 0-3 " in printed
    assert "GPU 4-7  rollout 0-3 " in printed
    assert "CPU      reward_worker 0-2 " in printed
    assert "8.03B / 4" in printed
    assert "256 of at most 1,536 tokens: 393,216 tokens" in printed
    assert "11 actors" in printed
    assert "It fits: 67.2 of 79.1 GB on the fullest GPU, " in printed
    assert max(map(len, printed.splitlines())) <= 100


def test_a_job_that_does_not(folder, capsys):
    arguments = ["--gpu-memory", "24", "--policy.max_tokens_per_micro_batch", "32768"]
    assert cli.main(["plan", "grpo", "local.yaml", *arguments]) == 2
    printed = " ".join(capsys.readouterr().out.split())
    assert "It does not fit: - policy needs" in printed
    assert "for optimiser states: GPU 0 of node 0 would hold" in printed
    assert "Enough would be any of these changes: --policy" in printed


def test_a_job_without_gpus_shows_cores_and_memory_of_its_roles(folder, capsys):
    text = GRPO.replace("MODEL", "tiny").replace("gpus_per_rank: 1", "cpus_per_rank: 2")
    (folder / "cpu.yaml").write_text(text.replace("zero: {stage: 3}", "zero: {stage: 2}"))
    (folder / "tiny").mkdir()
    (folder / "tiny" / "config.json").write_text(json.dumps(MODELS["tiny"]))
    job = ["plan", "grpo", "cpu.yaml", *WORKERS, "--placement.rollout.cpus_per_rank", "auto"]
    assert cli.main(job) == 0
    printed = capsys.readouterr().out
    assert "GPU" not in printed
    rows = [line.split() for line in printed.splitlines()]
    [policy] = [row for row in rows if row[:4] == ["0", "CPU", "policy", "0-3"]]
    [workers] = [row for row in rows if row[:3] == ["CPU", "reward_worker", "0-2"]]
    [engines] = [row for row in rows if row[:3] == ["CPU", "rollout", "0-3"]]
    assert (policy[4], workers[3], engines[3]) == ("8", "3", "all")
    assert "all: these compute in turn, each with every core of its node" in printed
    assert "11 actors, 15 CPU cores reserved, " in printed
    [needed] = [row[2] for row in rows if row[:2] == ["It", "takes"]]
    assert cli.main([*job, "--node-memory", str(float(needed) + 1)]) == 0
    assert "It fits: " in capsys.readouterr().out
    assert cli.main([*job, "--node-memory", str(float(needed) - 1)]) == 2
    assert f"node 0 would hold {needed} of " in capsys.readouterr().out


def test_what_is_advised_can_be_given_as_it_is_printed(folder, capsys):
    short = ["plan", "grpo", "local.yaml", "--gpu-memory", "24"]
    assert cli.main(short) == 2
    lines = capsys.readouterr().out.split("these changes:")[1].splitlines()
    advice = next(line.split("(")[0].split() for line in lines if line.strip())
    assert cli.main([*short, *advice]) == 0


def test_a_cluster_that_is_too_small(folder, capsys):
    assert cli.main(["plan", "grpo", "local.yaml", "--nodes", "1", "--gpus-per-node", "4"]) == 2
    assert "the cluster is too small: 8 GPU asked, 4 there" in capsys.readouterr().err


def test_a_model_that_is_not_on_this_disk(folder, capsys):
    assert cli.main(["plan", "grpo", "hub.yaml"]) == 2
    error = capsys.readouterr().err
    assert f"policy.model.path is '{EIGHT_B}', which is not on this disk" in error
    assert f"hf download {EIGHT_B} config.json" in error
    assert cli.main(["plan", "grpo", "hub.yaml", "--model-config", "model"]) == 0
    named = f"{EIGHT_B}=model/config.json"
    assert cli.main(["plan", "grpo", "hub.yaml", "--model-config", named]) == 0
    assert cli.main(["plan", "grpo", "hub.yaml", "--model-config", "org/other=model"]) == 2
    assert "names 'org/other', which is not loaded" in capsys.readouterr().err


def test_a_file_that_could_be_of_two_models(folder, capsys):
    arguments = ["--reward.model.path", "org/judge", "--model-config", "model"]
    assert cli.main(["plan", "grpo", "hub.yaml", *arguments]) == 2
    assert f"could be of {EIGHT_B} or org/judge" in capsys.readouterr().err


def test_a_model_in_the_hubs_cache(folder, capsys):
    name = f"models--{EIGHT_B.replace('/', '--')}"
    snapshot = folder / "cache" / "hub" / name / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(MODELS[EIGHT_B]))
    assert cli.main(["plan", "grpo", "hub.yaml"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grpo", "local.yaml", "--nodes", "0"], "must be an integer above 0, got '0'"),
        (["grpo", "local.yaml", "--gpu-memory", "nan"], "must be a number above 0, got 'nan'"),
        (["gpro", "local.yaml"], "invalid choice: 'gpro'"),
    ],
)
def test_arguments_out_of_range(folder, capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        cli.main(["plan", *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_key_that_is_not_there(folder, capsys):
    assert cli.main(["plan", "grpo", "local.yaml", "--policy.zero.stag", "3"]) == 2
    assert "did you mean policy.zero.stage?" in capsys.readouterr().err


def test_planning_imports_nothing_heavy(folder):
    code = (
        "import sys; from launch import cli; cli.main(['plan', 'grpo', 'local.yaml']); "
        "heavy = {'ray', 'torch', 'transformers', 'vllm', 'deepspeed', 'numpy'}; "
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
