"""Of two keys that stand in each other's place the one that is given last counts."""

from pathlib import Path

import pytest

from launch.run.folder import is_finished, run_folder
from rlhf_ray.config.dpo import DpoConfig
from rlhf_ray.config.jobs import PipelineConfig
from rlhf_ray.config.supervised import RmConfig, SftConfig
from rlhf_ray.config.tools.layers import lay_over
from rlhf_ray.config.tools.load import dump_config, load_config
from rlhf_ray.config.tools.stages import stages_of, values_of
from rlhf_ray.errors import ConfigError

BASE = """
batch_size: 2
data: {path: org/rows}
policy: {model: {path: org/model}}
"""
NUM_ROWS = 10


def load(tmp_path, text, *arguments, cls=SftConfig):
    path = tmp_path / "job.yaml"
    path.write_text(BASE + text)
    return load_config(cls, path, arguments)


@pytest.mark.parametrize(
    ("text", "arguments", "steps"),
    [
        ("", [], 100),
        ("epochs: 2", [], 10),
        ("total_steps: 7", [], 7),
        ("epochs: 2", ["--total-steps", "7"], 7),
        ("epochs: 2", ["--total_steps=7"], 7),
        ("total_steps: 7", ["--epochs", "2"], 10),
        ("total_steps: 7", ["--epochs", "0"], 7),
        ("epochs: 2", ["--epochs", "0"], 100),
        ("epochs: 2", ["--epochs", "0", "--total-steps", "7"], 7),
        ("{epochs: 0, total_steps: 7}", [], 7),
    ],
)
@pytest.mark.parametrize("cls", [SftConfig, DpoConfig])
def test_the_length_that_is_given_last_counts(tmp_path, text, arguments, steps, cls):
    config = load(tmp_path, text.strip("{}").replace(", ", "\n"), *arguments, cls=cls)
    assert config.for_rows(NUM_ROWS).total_steps == steps


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("epochs: 2\ntotal_steps: 7", []),
        ("", ["--epochs", "2", "--total-steps", "7"]),
        ("epochs: 1", ["--epochs", "2", "--total-steps", "7"]),
    ],
)
def test_both_lengths_in_one_source_are_refused(tmp_path, text, arguments):
    with pytest.raises(
        ConfigError, match="give one of them, got epochs 2 and total_steps 7"
    ) as caught:
        load(tmp_path, text, *arguments)
    assert "1 problem" in str(caught.value)


@pytest.mark.parametrize("text", ["", "epochs: 2", "epochs: 0.5", "total_steps: 7"])
def test_what_a_run_writes_of_itself_can_be_run_and_resumed(tmp_path, text):
    config = load(tmp_path, text, "--run-dir", str(tmp_path / "run"), "--resume", "auto")
    with run_folder(config.for_rows(NUM_ROWS)) as folder:
        (folder / "export").mkdir()
    again = load_config(SftConfig, folder / "config.yaml", ["--resume", "auto"])
    assert again == config
    assert is_finished(again)
    dump_config(again, tmp_path / "twice.yaml")
    assert load_config(SftConfig, tmp_path / "twice.yaml") == config
    other = load_config(SftConfig, folder / "config.yaml", ["--total-steps", "3"])
    assert other.for_rows(NUM_ROWS).total_steps == 3
    other = load_config(SftConfig, folder / "config.yaml", ["--epochs", "4"])
    assert other.for_rows(NUM_ROWS).total_steps == 20


def test_values_that_travel_keep_one_length(tmp_path):
    config = load(tmp_path, "epochs: 2", "--total-steps", "7")
    assert SftConfig.model_validate(values_of(config)).for_rows(NUM_ROWS).total_steps == 7
    config = load(tmp_path, "total_steps: 7", "--epochs", "2")
    assert SftConfig.model_validate(values_of(config)).for_rows(NUM_ROWS).total_steps == 10


@pytest.mark.parametrize(
    ("text", "given", "steps"),
    [("epochs: 2", {"total_steps": 7}, 7), ("total_steps: 7", {"epochs": 2}, 10)],
)
def test_a_stages_own_values_come_after_its_file(tmp_path, text, given, steps):
    path = tmp_path / "job.yaml"
    path.write_text(BASE + text)
    stage = {"name": "one", "job": "sft", "config": str(path), "set": given}
    pipeline = PipelineConfig.model_validate({"run_dir": str(tmp_path), "stages": [stage]})
    travelled = PipelineConfig.model_validate({**values_of(pipeline), "run_dir": str(tmp_path)})
    for config in (pipeline, travelled):
        [stage] = stages_of(config, check_files=False)
        assert stage.config.for_rows(NUM_ROWS).total_steps == steps


SOURCES = "data: {sources: [{path: org/a}, {path: org/b}]}"


@pytest.mark.parametrize(
    ("text", "arguments", "paths"),
    [
        (SOURCES, ["--data.path", "org/c"], ["org/c"]),
        ("", ["--data.sources.0.path", "org/a"], ["org/a"]),
        (SOURCES, ["--data.sources.1.path", "org/c"], ["org/a", "org/c"]),
    ],
)
def test_one_data_set_stands_in_place_of_several(tmp_path, text, arguments, paths):
    text = BASE.replace("data: {path: org/rows}", text) if text else BASE
    path = tmp_path / "job.yaml"
    path.write_text(text)
    data = load_config(SftConfig, path, arguments).data
    assert [source.path for source in data.sources] or [data.path] == paths


def test_the_same_of_held_out_rows(tmp_path):
    """Whatever section the keys stand in."""
    text = "eval: {data: {path: org/held}}"
    config = load(tmp_path, text, "--eval.data.sources.0.path", "org/other")
    assert not config.eval.data.path
    assert config.eval.data.sources[0].path == "org/other"
    both = ["--data.path", "org/a", "--data.sources.0.path", "org/b"]
    with pytest.raises(ConfigError, match="either a path or sources, got both"):
        load(tmp_path, "", *both)


def test_layers_leave_what_they_are_made_of(tmp_path):
    below = {"epochs": 2, "data": {"path": "a", "chat": True}}
    above = {"total_steps": 3, "data": {"sources": [{"path": "b"}]}}
    assert lay_over(RmConfig, below, above) == {
        "total_steps": 3,
        "data": {"chat": True, "sources": [{"path": "b"}]},
    }
    assert below == {"epochs": 2, "data": {"path": "a", "chat": True}}


def test_prompts_cut_longer_than_they_may_be_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"prompt_tokens must be at most max_prompt_tokens \(4\)"):
        load(tmp_path, "", "--data.prompt_tokens", "8", "--data.max_prompt_tokens", "4")


def test_nothing_else_of_the_file_is_lost(tmp_path):
    config = load(tmp_path, "epochs: 2\nmax_length: 12", "--total-steps", "7")
    assert (config.max_length, config.batch_size) == (12, 2)
    assert Path(config.data.path) == Path("org/rows")
