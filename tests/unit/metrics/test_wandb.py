"""Weights & Biases without a network: the real library writes, its own `wandb sync` reads."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from wandb_server import server, synced

from launch.run.folder import run_folder
from rlhf_ray.config.online import PpoConfig
from rlhf_ray.config.supervised import SftConfig
from rlhf_ray.metrics import open_metrics
from rlhf_ray.metrics.log import Table

PPO = {
    "total_steps": 1,
    "data": {"path": "prompts.jsonl"},
    "policy": {"model": {"path": "model"}},
    "reward": {"functions": [{"path": "scorers:score"}]},
}


@pytest.fixture
def config(tmp_path):
    return SftConfig.model_validate(
        {
            "run_dir": str(tmp_path / "run"),
            "total_steps": 2,
            "data": {"path": "x"},
            "policy": {"model": {"path": "y"}},
            "wandb": {"mode": "offline", "tags": ["t"]},
        }
    )


def test_an_offline_run_is_read_back_whole_also_after_a_resume(config):
    run_dir = Path(config.run_dir)
    rows = [["a", 1.0], ["b", None]]
    with open_metrics(config, job="sft") as log:
        log.log(1, {"sft/loss": 2.0, "policy/kl_ref": 0.125})
        log.table(Table(step=1, name="eval", columns=["prompt", "score"], rows=rows))
        log.log(2, {"sft/loss": 1.0})
    run_id = (run_dir / "wandb_run_id").read_text()
    time.sleep(1.1)  # W&B names a folder by the second
    with open_metrics(config, job="sft", resumed_step=1) as log:
        log.log(2, {"sft/loss": 1.5})  # it was not saved, and is done again
        log.log(3, {"sft/loss": 0.5})
    files = list(run_dir.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert len(files) == 2
    received = synced(run_dir)
    assert {name for name, _ in received.configs} == {run_id}
    logged = [row for row in received.history if "sft/loss" in row]
    assert [(row["step"], row["sft/loss"]) for row in logged] == [(1, 2.0), (2, 1.0), (3, 0.5)]
    assert logged[0]["policy/kl_ref"] == 0.125
    assert received.config["policy"]["optim"]["lr"] == config.policy.optim.lr
    table = received.tables()["samples/eval", 1]
    assert (table["columns"], table["data"]) == (["prompt", "score"], rows)


def test_entries_of_lists_are_queryable_by_their_index(tmp_path):
    values = PPO | {"run_dir": str(tmp_path), "wandb": {"mode": "offline"}}
    with open_metrics(PpoConfig.model_validate(values), job="ppo"):
        pass
    told = synced(tmp_path).config
    assert told["reward"]["functions"]["0"]["path"] == "scorers:score"
    assert told["policy"]["optim"]["betas"] == [0.9, 0.95]


def test_a_planted_secret_is_in_no_file_and_on_no_screen(tmp_path, monkeypatch, capfd):
    """As a login in a URL, as a key's value, on the command line and in the environment."""
    secret = "PLANTED-4f1d"
    monkeypatch.setenv("WANDB_API_KEY", secret * 4)
    monkeypatch.setenv("SCORER_TOKEN", secret)
    monkeypatch.setattr(sys, "argv", ["rlhf-ray", "--reward.remote.url", f"https://u:{secret}@h/s"])
    arguments = {"api_key": secret, "url": f"https://{secret}@host/"}
    values = PPO | {
        "run_dir": str(tmp_path / "run"),
        "reward": {
            "functions": [{"path": "scorers:score", "arguments": arguments}],
            "remote": {"url": f"https://me:{secret}@host/score", "token_env": "SCORER_TOKEN"},
        },
        "tensorboard": True,
        "wandb": {"mode": "offline"},
    }
    config = PpoConfig.model_validate(values)
    with run_folder(config), open_metrics(config, job="ppo") as log:
        log.log(1, {"policy/loss": 1.0})
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 5
    assert [path for path in files if secret.encode() in path.read_bytes()] == []
    assert secret not in "".join(capfd.readouterr())
    assert config.reward.remote.url == f"https://me:{secret}@host/score"
    assert sys.argv[1] == "--reward.remote.url"


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_all_files_are_below_the_runs_folder(config, mode, tmp_path, monkeypatch):
    working, home = tmp_path / "working", tmp_path / "home"
    working.mkdir()
    home.mkdir()
    monkeypatch.chdir(working)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("WANDB_DIR", raising=False)
    wandb = config.wandb.model_copy(update={"mode": mode})
    config = config.model_copy(update={"wandb": wandb})
    with server() as (url, _):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        script = (
            "import sys; from rlhf_ray.metrics import open_metrics\n"
            "from rlhf_ray.config.supervised import SftConfig\n"
            "from rlhf_ray.metrics.log import Table\n"
            "config = SftConfig.model_validate_json(sys.argv[1])\n"
            "with open_metrics(config, job='sft') as log:\n"
            "    log.log(1, {'sft/loss': 2.0})\n"
            "    if config.wandb.mode == 'offline':  # the test's server knows no artifacts\n"
            "        log.table(Table(step=1, name='eval', columns=['prompt'], rows=[['a']]))\n"
        )
        command = [sys.executable, "-c", script, config.model_dump_json()]
        subprocess.run(command, check=True, timeout=120)
    left = [str(path) for folder in (working, home) for path in folder.rglob("*")]
    assert left == []
    assert list(Path(config.run_dir).glob("wandb/*run-*"))
