"""The command line: exit status, messages, and the hand-over to a job."""

import os
import re
import sys
import types

import pytest

from launch import cli
from rlhf_ray.errors import ConfigError, RunError

SFT = """
data: {path: DATA}
policy: {model: {path: org/model}}
"""


@pytest.fixture
def config_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.jsonl").write_text('{"text": "hello"}\n')
    path = tmp_path / "small.yaml"
    path.write_text(SFT.replace("DATA", str(tmp_path / "data.jsonl")))
    return str(path)


@pytest.fixture
def job(monkeypatch):
    """Stands in for `launch.job`; set `job.run` to what the job does."""
    module = types.ModuleType("launch.job")
    monkeypatch.setitem(sys.modules, "launch.job", module)
    return module


def test_a_job_gets_its_configuration_and_its_status_is_returned(job, config_path):
    given = []
    job.run = lambda config: given.append(config) or 7
    assert cli.main(["sft", config_path, "--seed", "3", "--run-dir", "runs/x"]) == 7
    assert (given[0].seed, given[0].run_dir) == (3, os.path.abspath("runs/x"))


def test_without_run_dir_the_folder_names_job_config_and_time(job, config_path):
    given = []
    job.run = lambda config: given.append(config.run_dir) or 0
    cli.main(["sft", config_path])
    assert re.search(r"/runs/sft-small-\d{8}-\d{6}$", given[0])


def raising(error):
    def run(config):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ConfigError("too few GPUs"), 2, "error: too few GPUs"),
        (RunError("actor policy died"), 1, "error: actor policy died"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_known_error_is_a_message_without_traceback(
    job, config_path, capsys, error, status, message
):
    job.run = raising(error)
    assert cli.main(["sft", config_path]) == status
    assert capsys.readouterr().err.strip() == message


def test_who_interrupts_a_run_learns_how_it_goes_on(job, config_path, tmp_path, caplog):
    caplog.set_level("INFO")
    job.run = raising(KeyboardInterrupt())
    arguments = ["sft", config_path, "--run-dir", "runs/x"]
    assert cli.main(arguments) == 130
    assert caplog.messages == []  # there is nothing yet to go on with
    (tmp_path / "runs/x").mkdir(parents=True)
    (tmp_path / "runs/x/status.json").write_text('{"state": "interrupted"}')
    assert cli.main(arguments) == 130
    [message] = caplog.messages
    assert message.endswith(f"--run-dir {tmp_path}/runs/x --resume auto")


def test_our_own_bugs_keep_their_traceback(job, config_path):
    job.run = raising(AssertionError("a bug"))
    with pytest.raises(AssertionError):
        cli.main(["sft", config_path])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pppo"], "no job 'pppo', did you mean ppo?"),
        (["sft"], "needs a configuration file"),
        (["sft", "--seed", "1"], "needs a configuration file"),
        (["sft", "nowhere.yaml"], "nowhere.yaml: no such configuration file"),
    ],
)
def test_bad_input_exits_with_2(capsys, arguments, message):
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_mistake_stops_before_the_job(job, config_path, capsys):
    job.run = raising(AssertionError("the job must not start"))
    assert cli.main(["sft", config_path, "--data.path", "gone.jsonl"]) == 2
    assert "data.path: no such file" in capsys.readouterr().err


def test_help_and_version(capsys):
    assert cli.main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert cli.JOB_CONFIGS
    for job, cls in cli.JOB_CONFIGS.items():
        [line] = [line for line in overview.splitlines() if line.split()[:1] == [job]]
        assert cls.__doc__.split(".")[0].split()[0] in line, "what it is about"
    assert cli.main(["grpo", "--help"]) == 0
    assert "--policy.optim.lr" in capsys.readouterr().out
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+", capsys.readouterr().out.strip())
    assert cli.main([]) == 2
