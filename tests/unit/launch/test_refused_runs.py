"""A job that is refused leaves its folder as it was, to the byte and to the time of each file."""

import asyncio
import json
import subprocess
import sys
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_pool import FakeLoop, FakePool, FakeTokenizer

from launch import cli, job
from launch.run.folder import check_folder, run_folder
from rlhf_ray.config.jobs import PipelineConfig
from rlhf_ray.config.online import GrpoConfig
from rlhf_ray.config.sample import SampleConfig
from rlhf_ray.config.supervised import RmConfig, SftConfig
from rlhf_ray.config.tools.stages import stages_of
from rlhf_ray.errors import ConfigError, Disagreement, RunError
from rlhf_ray.jobs.online import OnlineData
from rlhf_ray.jobs.sft import SftData
from rlhf_ray.jobs.status import read_status, state_of
from rlhf_ray.jobs.table import JOBS
from rlhf_ray.loops.checkpoints import CheckpointStore
from rlhf_ray.loops.setup import setup_of
from rlhf_ray.rollouts.journal import journal_of
from rlhf_ray.rollouts.records import RecordedGroup
from rlhf_ray.types import Prompt, SftExample


def row(*ids):
    ids_T = np.array(ids, dtype=np.int32)
    return SftExample(example_id="r", token_ids_T=ids_T, trained_T=np.ones(len(ids), dtype=bool))


ROWS = [row(1, 2), row(3, 4)]
ONLINE = {
    "data": {"path": "org/rows"},
    "policy": {"model": {"path": "org/model"}},
    "reward": {"functions": [{"path": "m:f"}]},
}


def make_config(folder, cls=SftConfig, **settings):
    role = "reward" if cls is RmConfig else "policy"
    values = {
        "run_dir": str(folder),
        "total_steps": 4,
        "batch_size": 2,
        "data": {"path": "org/rows"},
        role: {"model": {"path": "org/model"}},
    }
    return cls.model_validate({**values, **settings})


def loading(rows):
    def load(config):
        return SftData(rows=rows, eval_rows=[], tokenizer=FakeTokenizer(), end_token_ids=())

    return load


def run(config, load, **parts):
    """The command, with other data and nothing of its own that starts."""
    with pytest.MonkeyPatch.context() as patched:
        fake = replace(JOBS[config.job], load=load, **{"roles": no_training, **parts})
        patched.setattr(job, "JOBS", {config.job: fake})
        return job.run(config)


@pytest.fixture
def done(tmp_path):
    """A run that came to its end, with two checkpoints."""
    config = make_config(tmp_path / "run")
    with run_folder(config) as folder:
        write_checkpoints(config, {"setup": setup_of(config, ROWS)})
        (folder / "metrics.jsonl").write_text('{"step": 4, "time_s": 1.0}\n')
        (folder / "export").mkdir()
        (folder / "export/model.safetensors").write_text("weights")
    return config


def write_checkpoints(config, state, steps=(2, 4)):
    store = CheckpointStore(Path(config.run_dir), keep=2)
    for step in steps:
        with store.writing(step) as folder:
            (folder / "policy").mkdir()
            (folder / "policy/weights").write_text(f"weights of {step}")
            store.commit(step, state, roles=["policy"])


def everything_in(folder):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in [folder, *folder.rglob("*")]
    }


async def no_training(config, data, specs, pool):
    raise AssertionError("the job must have been refused")


def refused(config, *, rows=ROWS, match):
    """Refusal before anything starts; the folder stays as it is."""
    before = everything_in(Path(config.run_dir))

    def start(*arguments):
        raise AssertionError("nothing may be started")

    with pytest.MonkeyPatch.context() as patched, pytest.raises(ConfigError, match=match):
        patched.setattr(job, "connected", start)
        check_folder(config)
        run(config, loading(rows))
    assert everything_in(Path(config.run_dir)) == before


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"placement": {"policy": {"ranks": 2}}}, "placement.policy.ranks was 1, is 2"),
        ({"policy": {"model": {"path": "org/other"}}}, "policy.model.path was 'org/model'"),
        ({"batch_size": 1}, "batch_size was 2, is 1"),
        ({"seed": 3}, "seed was 0, is 3"),
        ({"total_steps": 3}, "total_steps must be at least the 4 steps that the run in"),
    ],
)
def test_other_settings(done, settings, match):
    changed = make_config(done.run_dir, resume="auto", **settings)
    refused(changed, match=match)
    assert state_of(done.run_dir) == "finished"


def test_other_data(done):
    changed = make_config(done.run_dir, resume="auto", total_steps=6)
    refused(changed, rows=ROWS[:1], match="the data's rows")


def test_an_epoch_smaller_than_a_batch(done):
    values = done.model_dump(exclude={"total_steps"})
    changed = SftConfig.model_validate({**values, "epochs": 1, "batch_size": 3, "resume": "auto"})
    refused(changed, match="batch_size must be at most the data's 2 rows")


def test_data_that_cannot_be_read(done):
    def load(config):
        raise ConfigError("rows.jsonl:3: no answer")

    before = everything_in(Path(done.run_dir))
    with pytest.raises(ConfigError, match=r"rows.jsonl:3"):
        run(make_config(done.run_dir, resume="auto", seed=1), load)
    assert everything_in(Path(done.run_dir)) == before


def test_no_checkpoint_that_is_whole(done):
    for shard in Path(done.run_dir).glob("checkpoints/*/policy/weights"):
        shard.write_text("torn")
    changed = make_config(done.run_dir, resume="auto", total_steps=6)
    refused(changed, match="none of the 2 checkpoints in .* is whole")


def test_another_kind_of_job(done):
    refused(
        make_config(done.run_dir, RmConfig, resume="auto"), match="holds a run of sft, not of rm"
    )
    stages = [{"name": "one", "job": "sft"}]
    whole = {"run_dir": done.run_dir, "resume": "auto", "stages": stages}
    with pytest.raises(ConfigError, match="holds a run of sft, not of pipeline"):
        check_folder(PipelineConfig.model_validate(whole))


def test_a_finished_run_without_its_checkpoints(done):
    for path in sorted(Path(done.run_dir).glob("checkpoints/**/*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    changed = make_config(done.run_dir, resume="auto", total_steps=6)
    refused(changed, match="holds a finished run without its checkpoints")
    check_folder(done.model_copy(update={"resume": "auto"}))  # nothing is left to do there


HOLD = """
import sys
from launch.run.folder import run_folder
from rlhf_ray.config.tools.load import load_config
from rlhf_ray.config.supervised import SftConfig

with run_folder(load_config(SftConfig, sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_in_which_a_process_runs(done, tmp_path):
    command = [sys.executable, "-c", HOLD, f"{done.run_dir}/config.yaml"]
    running = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert running.stdout.readline() == "held\n"
        changed = make_config(done.run_dir, resume="auto", total_steps=6)
        refused(changed, match=rf"is in use: process {running.pid} on \S+ runs a job there")
        before = everything_in(Path(done.run_dir))
        # Both may have found it free when they began.
        with pytest.raises(ConfigError, match="is in use"), run_folder(changed):
            pass
        assert everything_in(Path(done.run_dir)) == before
    finally:
        running.kill()
        running.communicate()
    assert state_of(done.run_dir) == "running"
    check_folder(changed)  # a lock ends with its process


async def nothing(*arguments):
    pass


async def refuse_nodes(config, pool):
    raise ConfigError("the cluster is too small: ...")


@asynccontextmanager
async def fake_pool(config):
    yield None


def test_a_cluster_that_is_too_small(done, monkeypatch):
    monkeypatch.setattr(job, "connected", lambda *arguments: nullcontext())
    monkeypatch.setattr(job, "open_pool", fake_pool)
    monkeypatch.setattr(job, "check_nodes", refuse_nodes)
    before = everything_in(Path(done.run_dir))
    changed = make_config(done.run_dir, resume="auto", total_steps=6)
    with pytest.raises(ConfigError, match="too small"):
        run(changed, loading(ROWS))
    assert everything_in(Path(done.run_dir)) == before


def test_a_model_that_cannot_be_loaded(done):
    """Roles are asked when the run has begun: then its files are put back."""
    config = make_config(done.run_dir, resume="auto", policy={"model": {
        "path": "org/model", "attention": "flash_attention_2"}})  # fmt: skip
    files = [Path(done.run_dir) / name for name in ("config.yaml", "status.json")]
    before = [file.read_bytes() for file in files]
    with pytest.raises(ConfigError, match="no such kernel"), run_folder(config):
        assert state_of(done.run_dir) == "running"
        raise ConfigError("no such kernel")
    assert [file.read_bytes() for file in files] == before
    with pytest.raises(RunError), run_folder(config):
        raise RunError("a rank died")
    assert state_of(done.run_dir) == "failed"
    before = [file.read_bytes() for file in files]
    with pytest.raises(ConfigError, match="too late"), run_folder(config):
        write_checkpoints(config, {}, steps=(6,))
        raise ConfigError("too late")
    assert "too late" in read_status(Path(done.run_dir))["reason"]


def test_a_new_run_whose_model_cannot_be_loaded_has_failed(tmp_path):
    config = make_config(tmp_path / "run")
    with pytest.raises(ConfigError), run_folder(config):
        raise ConfigError("no such kernel")
    assert state_of(config.run_dir) == "failed"


@pytest.fixture
def ended(monkeypatch):
    """Nothing is started, and jobs run on what is not there; the roles that are ended."""
    ended = []

    class Kept:
        async def end(self, role):
            ended.append(role)

    @asynccontextmanager
    async def open_pool(config):
        yield Kept()

    monkeypatch.setattr(job, "connected", lambda *arguments: nullcontext())
    monkeypatch.setattr(job, "open_pool", open_pool)
    monkeypatch.setattr(job, "check_nodes", nothing)
    monkeypatch.setattr(job, "JobPool", lambda pool, config: FakePool(Path(config.run_dir)))
    monkeypatch.setattr(job, "skipped_steps_fetched", lambda config, pool: fake_pool(config))
    return ended


def test_a_job_that_is_not_refused_is_written_and_told_of_its_checkpoint(done, ended):
    seen = []

    def asked(what):
        seen.append((what, state_of(done.run_dir)))

    longer = make_config(done.run_dir, resume="auto", total_steps=6)
    assert run(longer, loading(ROWS), roles=nothing, loop=lambda *arguments: FakeLoop(asked)) == 0
    assert seen == [("loop from 4", "running")]
    assert "total_steps: 6" in (Path(done.run_dir) / "config.yaml").read_text()
    assert ended == []


def test_roles_that_disagree_are_not_kept_for_the_next_job(tmp_path, ended):
    def asked(what):
        raise Disagreement.between("policy", "rollout", message="they differ")

    config = make_config(tmp_path / "run")
    with pytest.raises(Disagreement, match="they differ"):
        run(config, loading(ROWS), roles=nothing, loop=lambda *arguments: FakeLoop(asked))
    assert ended == ["policy", "rollout"]
    assert state_of(config.run_dir) == "failed"


def test_samples_that_somebody_cut(tmp_path):
    values = {**ONLINE, "run_dir": str(tmp_path / "run")}
    config = SampleConfig.model_validate(values)
    prompts = [Prompt(prompt_id="a", token_ids_T=(1,), text="a")]

    def load(config):
        return OnlineData(
            prompts=prompts,
            eval_prompts=[],
            end_token_ids=(),
            vocabulary="",
            tokenizer=None,
        )

    with pytest.raises(RunError), run_folder(config) as folder:
        state = {"setup": setup_of(config, prompts), "sizes": {"samples.jsonl": 9}}
        write_checkpoints(config, state)
        (folder / "samples.jsonl").write_text("{}\n")
        raise RunError("stopped")
    before = everything_in(folder)
    again = SampleConfig.model_validate({**values, "resume": "auto"})
    with pytest.raises(ConfigError, match=r"samples.jsonl must have at least the 9 bytes"):
        run(again, load)
    assert everything_in(folder) == before


# A draw that was passed over, of which no sample is kept.
GROUP = RecordedGroup(
    draw=0, prompt_id="a", is_accepted=False, scores_G=(), summaries_G=(), rollouts_G=()
)


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"seed": 1}, "seed was 1, is 0"), ({"data": {"shuffle": False}}, "data.shuffle was False")],
    ids=["of another seed", "of another order"],
)
def test_the_journal_of_another_run(changes, match, tmp_path, monkeypatch):
    """Somebody copied the folder of rollouts; the run had no checkpoint yet."""
    prompts = [Prompt(prompt_id="a", token_ids_T=(1,), text="a")]

    def load(config):
        return OnlineData(
            prompts=prompts,
            eval_prompts=[],
            end_token_ids=(),
            vocabulary="",
            tokenizer=None,
        )

    values = {**ONLINE, "run_dir": str(tmp_path / "run")}
    config = GrpoConfig.model_validate({**values, "resume": "auto"})
    with pytest.raises(RunError), run_folder(config) as folder:
        raise RunError("stopped")
    other = {**values, **changes, "data": {**values["data"], **changes.get("data", {})}}
    journal_of(config.run_dir, setup_of(GrpoConfig.model_validate(other), prompts)).append(GROUP)
    before = everything_in(folder)
    monkeypatch.setattr(job, "connected", lambda *arguments: pytest.fail("it was started"))
    with pytest.raises(ConfigError, match=rf"rollouts in \S+ cannot be replayed: {match}"):
        run(config, load)
    assert everything_in(folder) == before


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        (
            [
                *("--placement.policy.gpus_per_rank", "1", "--placement.rollout.share", "policy"),
                *("--placement.rollout.gpus_per_rank", "1"),
            ],
            "max_staleness must be 0 where policy and the engines share GPUs",
        ),
        (["--algorithm.correction.kind", "none"], "correction.kind must not be none"),
    ],
    ids=["engines on the policy's GPUs", "no correction"],
)
def test_what_cannot_run_ahead(keys, match, tmp_path, capsys):
    (tmp_path / "grpo.yaml").write_text(json.dumps(ONLINE))
    arguments = ["--run-dir", str(tmp_path / "run"), "--max-staleness", "2", *keys]
    assert cli.main(["grpo", str(tmp_path / "grpo.yaml"), *arguments]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "1 problem" in said and match in said
    assert [path.name for path in tmp_path.iterdir()] == ["grpo.yaml"]


# ---------------------------------------------------------------------------- pipelines


@pytest.fixture
def stages(tmp_path, monkeypatch):
    """A pipeline whose first stage is finished and whose second was left after two steps."""
    monkeypatch.setattr(job, "connected", lambda *arguments: pytest.fail("it was started"))
    fake = replace(JOBS["sft"], load=loading(ROWS))
    monkeypatch.setattr(job, "JOBS", {"sft": fake})
    model = write_inputs(tmp_path)

    def make(**settings):
        stage = {"total_steps": 4, "batch_size": 2, "data": {"path": f"{tmp_path}/rows.jsonl"}}
        first = {**stage, "policy": {"model": {"path": str(model)}}}
        second = {**stage, "policy": {"model": {"path": "stage:one"}}}
        values = {
            "run_dir": str(tmp_path / "run"),
            "resume": "auto",
            "stages": [
                {"name": "one", "job": "sft", "set": {**first, **settings.get("one", {})}},
                {"name": "two", "job": "sft", "set": {**second, **settings.get("two", {})}},
            ],
        }
        return PipelineConfig.model_validate(values)

    whole = make()
    one, two = stages_of(whole)
    with pytest.raises(RunError), run_folder(whole):
        with run_folder(one.config) as folder:
            (folder / "export").mkdir()
            (folder / "export/config.json").write_text("{}")
            write_weights(folder / "export/model.safetensors")
        with run_folder(two.config):
            write_checkpoints(two.config, {"setup": setup_of(two.config, ROWS)})
            raise RunError("stopped")
    return make


def write_inputs(folder):
    """A file of rows, and the folder of a model."""
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    write_weights(model / "model.safetensors")
    (folder / "rows.jsonl").write_text('{"text": "a"}\n')
    return model


def write_weights(path):
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"two": {"seed": 1}}, "seed was 0, is 1"),
        ({"two": {"batch_size": 1}}, "batch_size was 2, is 1"),
        ({"one": {"seed": 1}}, "stage one is finished with other settings: seed was 0, is 1"),
    ],
)
def test_a_stage_of_a_pipeline(stages, tmp_path, changes, match):
    before = everything_in(tmp_path / "run")
    with pytest.raises(ConfigError, match=match):
        job.run(stages(**changes))
    assert everything_in(tmp_path / "run") == before


def test_what_a_stage_does_not_look_at_is_said(stages, caplog):
    model = {"path": "stage:one", "lora": {"alpha": 4}}
    with pytest.raises(ConfigError):
        job.run(stages(two={"seed": 1, "policy": {"model": model}}))
    assert "settings that stage two does not look at: policy.model.lora (its rank" in caplog.text


def test_the_command_refuses_too(tmp_path, done, monkeypatch, capsys):
    """All the way from the command line: exit status 2."""
    model = write_inputs(tmp_path)
    values = {"data": {"path": f"{tmp_path}/rows.jsonl"}, "reward": {"model": {"path": str(model)}}}
    (tmp_path / "rm.yaml").write_text(json.dumps(values))
    before = everything_in(Path(done.run_dir))
    arguments = ["--run-dir", done.run_dir, "--resume", "auto"]
    assert cli.main(["rm", str(tmp_path / "rm.yaml"), *arguments]) == 2
    assert "holds a run of sft, not of rm" in capsys.readouterr().err.replace("\n", " ")
    assert everything_in(Path(done.run_dir)) == before


def test_a_started_run_is_marked(tmp_path):
    config = GrpoConfig.model_validate({**ONLINE, "run_dir": str(tmp_path / "run")})

    async def stop():
        with run_folder(config):
            asyncio.current_task().cancel()
            await asyncio.sleep(1)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(stop())
    told = json.loads((tmp_path / "run/status.json").read_text())
    assert (told["state"], told["job"]) == ("interrupted", "grpo")
