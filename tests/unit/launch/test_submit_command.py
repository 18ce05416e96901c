"""`rlhf-ray submit`: what is refused before anything is sent, and what is sent."""

import subprocess
import sys

import pytest

from launch import cli
from launch.jobs import parser as jobs_parser
from launch.package import find_missing
from rlhf_ray.config.dpo import DpoConfig
from rlhf_ray.config.jobs import PipelineConfig
from rlhf_ray.config.supervised import SftConfig
from rlhf_ray.config.tools.load import load_config, validate
from rlhf_ray.config.tools.stages import stages_of, values_of
from rlhf_ray.config.tools.yaml_file import YamlFile, write_yaml

SFT = {"data": {"path": "/data/rows.jsonl"}, "policy": {"model": {"path": "org/model"}}}
GRPO = {
    "data": {"path": "prompts.jsonl"},
    "policy": {"model": {"path": "models/small/last", "chat_template": "my.jinja"}},
    "reward": {"functions": [{"path": "my.py:near"}, {"path": "package.module:near"}]},
    "eval": {"data": {"sources": [{"path": "org/rows:main"}, {"path": "held/out.jsonl"}]}},
}


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def written(tmp_path):
    def write(values, name="job.yaml"):
        write_yaml(values, tmp_path / name)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which cluster?"),
        (["--seeed", "1"], "did you mean seed?"),
        (["--run-dir", "runs/x"], "run_dir must be a folder of the cluster"),
        (["--data.path", "rows.jsonl"], "send it along by --working-dir"),
        (["--working-dir", "/gone"], "no such folder: '/gone'"),
        (["--env", "NOT_SET_HERE"], "--env NOT_SET_HERE: no such variable"),
        (["--env", "1X=2"], "--env takes NAME or NAME=VALUE"),
        (["--name", "a/b"], "--name must be of letters"),
        (["--address", "ray://head:10001"], "--address must be the dashboard's"),
        (["--address", "head"], "a Ray address is host:port"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(written, capsys, arguments, message):
    assert cli.main(["submit", "sft", written(SFT), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_mistakes_and_help_answer_without_ray(written):
    script = (
        "import sys; from launch import cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(*sorted({'ray', 'torch', 'requests'} & sys.modules.keys()))"
    )
    for words in (["--help"], ["sft", written(SFT), "--data.path", "rows.jsonl"]):
        done = subprocess.run(
            [sys.executable, "-c", script, "submit", *words],
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        assert done.stdout.rstrip(" ").splitlines()[-1] == ""


def test_variables_are_replaced_where_the_command_runs(written, monkeypatch, capsys):
    monkeypatch.delenv("PLACE", raising=False)
    path = written(SFT | {"data": {"path": "${PLACE}/rows.jsonl"}})
    assert cli.main(["submit", "sft", path]) == 2
    assert "environment variable PLACE is not set" in capsys.readouterr().err
    monkeypatch.setenv("PLACE", "/here")  # restored after the test
    assert cli.main(["submit", "sft", path, "--env", "PLACE=/there"]) == 2
    assert "which cluster?" in capsys.readouterr().err


def test_only_what_was_given_is_sent(written):
    config = load_config(DpoConfig, written(SFT), ["--seed", "3"])
    assert values_of(config) == SFT | {"seed": 3}
    again, problems = validate(DpoConfig, YamlFile(values=values_of(config), lines={}, problems=()))
    assert (again, problems) == (config, [])
    assert again.policy.model.model_fields_set == config.policy.model.model_fields_set


def test_relative_paths_need_their_files_with_them():
    missing = {".".join(problem.path) for problem in find_missing(GRPO, None)}
    assert missing == {
        "data.path", "policy.model.path", "policy.model.chat_template",
        "reward.functions.0.path", "eval.data.sources.1.path",
    }  # fmt: skip
    files = ["my.py", "my.jinja", "prompts.jsonl", "models/small/last/config.json"]
    [left] = find_missing(GRPO, files)
    assert left.path == ("eval", "data", "sources", "1", "path")
    assert "is not among the files" in left.message


def test_a_pattern_of_files_needs_the_folder_that_it_searches():
    values = {"data": {"path": "corpus/**/train-*.jsonl"}}
    assert find_missing(values, ["corpus/en/train-0.jsonl"]) == []
    [left] = find_missing(values, ["corpora/train-0.jsonl"])
    assert left.path == ("data", "path")
    assert find_missing({"data": {"path": "*.jsonl"}}, ["a.jsonl"]) == []


def test_a_pipeline_is_sent_with_its_stages_files(written, tmp_path, monkeypatch):
    sft = written({**SFT, "seed": 1, "total_steps": 7}, "sft.yaml")
    stages = [
        {"name": "one", "job": "sft", "config": sft, "set": {"total_steps": 9}},
        {"name": "two", "job": "sft", "config": sft,
         "set": {"policy": {"model": {"path": "stage:one"}}}},
    ]  # fmt: skip
    path = written({"stages": stages, "seed": 5}, "all.yaml")
    config = load_config(PipelineConfig, path, ["--run-dir", str(tmp_path)])
    values = values_of(config)
    assert find_missing(values, None) == []
    whole = stages_of(config, check_files=False)
    (tmp_path / "sft.yaml").unlink()
    sent = stages_of(PipelineConfig.model_validate(values), check_files=False)
    assert sent == whole
    assert [(stage.config.seed, stage.config.total_steps) for stage in sent] == [(5, 9), (5, 7)]


def test_a_stage_with_a_mistake_is_refused_here(written, capsys):
    stages = [{"name": "one", "job": "sft", "set": SFT | {"total_step": 1}}]
    assert cli.main(["submit", "pipeline", written({"stages": stages})]) == 2
    assert "stages.one.total_step: unknown key" in capsys.readouterr().err


def test_the_configuration_class_of_every_job_can_be_submitted(written):
    assert load_config(SftConfig, written(SFT)).run_dir == ""
    assert {"sft", "rm", "dpo", "ppo", "grpo", "sample", "pipeline"} == set(cli.CONFIGURED)


def test_jobs_takes_its_three_commands():
    given = jobs_parser().parse_args(["logs", "first", "--follow", "--address", "http://h:1"])
    assert (given.command, given.name, given.follow) == ("logs", "first", True)
    with pytest.raises(SystemExit):
        jobs_parser().parse_args([])
