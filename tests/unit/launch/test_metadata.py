"""What the dashboard is told of a run."""

import pytest

from actors.pool.processes import FORWARDED, environment
from launch.run.cluster import metadata_of
from rlhf_ray.config.jobs import PipelineConfig
from rlhf_ray.config.supervised import SftConfig
from rlhf_ray.metrics.wandb_sink import keep_wandb_run_id


def config(run_dir, **wandb):
    values = {"data": {"path": "x"}, "policy": {"model": {"path": "a/b"}}, "wandb": wandb}
    return SftConfig.model_validate(values | {"run_dir": str(run_dir)})


@pytest.fixture(autouse=True)
def no_site(monkeypatch):
    for name in ("WANDB_ENTITY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def test_job_run_and_folder(tmp_path):
    told = {"run": tmp_path.name, "run_dir": str(tmp_path)}
    assert metadata_of(config(tmp_path)) == told | {"job": "sft"}
    stages = [{"name": "one", "job": "sft"}]
    pipeline = PipelineConfig.model_validate({"run_dir": str(tmp_path), "stages": stages})
    assert metadata_of(pipeline) == told | {"job": "pipeline"}


def test_the_page_at_wandb_where_it_is_known(tmp_path, monkeypatch):
    (tmp_path / "wandb_run_id").write_text("1234abcd")
    known = config(tmp_path, mode="online", entity="team", project="words")
    page = "https://wandb.ai/team/words/runs/1234abcd"
    assert metadata_of(known)["wandb"] == page
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example/")
    assert metadata_of(known)["wandb"] == "https://wandb.example/team/words/runs/1234abcd"
    for wandb in ({"mode": "online"}, {"mode": "offline", "entity": "team"}):
        assert "wandb" not in metadata_of(config(tmp_path, **wandb))


def test_a_new_run_keeps_the_number_that_its_page_has(tmp_path):
    page = metadata_of(config(tmp_path, mode="online", entity="team"))["wandb"]
    assert not (tmp_path / "wandb_run_id").exists(), "the run has not begun"
    run_id = keep_wandb_run_id(tmp_path)
    assert page.endswith(f"/runs/{run_id}")
    assert (tmp_path / "wandb_run_id").read_text() == run_id


def test_actors_get_the_variables_that_are_handed_on(monkeypatch):
    monkeypatch.setenv("MINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setenv(FORWARDED, "MINE,OMP_NUM_THREADS,NOT_SET_ANYWHERE")
    assert environment(2, ["3"]) == {
        "MINE": "1",
        "OMP_NUM_THREADS": "2",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "3",
        "DS_ACCELERATOR": "cuda",
    }
    monkeypatch.delenv(FORWARDED)
    assert "MINE" not in environment(2, None)
