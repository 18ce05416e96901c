"""What is refused before Ray starts."""

import os

import pytest
from model_folders import ON_GPU, refused, write_model

from rlhf_ray.config.checks.preflight import find_problems, login_fault, preflight
from rlhf_ray.config.online import GrpoConfig
from rlhf_ray.config.supervised import SftConfig
from rlhf_ray.data.files.local import local_data
from rlhf_ray.errors import DataError


def test_a_good_configuration_passes(good):
    preflight(GrpoConfig.model_validate(good))


@pytest.mark.parametrize(
    ("section", "change", "expected"),
    [
        ("data", {"path": "nowhere.jsonl"}, "data.path: no such file or folder: 'nowhere.jsonl'"),
        ("data", {"path": "./no/where"}, "data.path: no such file"),
        ("data", {"path": "../shared/data/no.jsonl"}, "; set RLHF_RAY_DATA to the folder"),
        ("data", {"path": "runs/demo/data/no.jsonl"}, "; `make demo` writes it"),
        ("policy", {"model": {"path": "./no/model"}}, "policy.model.path: no such folder"),
        ("policy", {"model": {"path": "a/b/c"}}, "policy.model.path: no such folder"),
        ("reward", {"functions": [{"path": "nowhere.py:f"}]}, "no such file: 'nowhere.py'"),
        ("reward", {"functions": [{"path": "no_module.x:f"}]}, "no module 'no_module.x'"),
        ("reward", {"functions": [{"path": "rlhf_ray.nothing:f"}]}, "no module 'rlhf_ray.nothing'"),
        (
            "reward",
            {"functions": [{"path": "rlhf_ray.rewards.contains:contain_word"}]},
            "defines no 'contain_word', did you mean 'contains_word'?",
        ),
        ("reward", {"model": {"path": "./rm"}}, "reward.model.path: no such folder"),
        (
            "reward",
            {"remote": {"url": "http://scorer", "token_env": "NO_SUCH_VARIABLE"}},
            "reward.remote.token_env: names 'NO_SUCH_VARIABLE', which is not set",
        ),
        (
            "reward",
            {"judge": {"url": "http://judge", "model": "m", "token_env": "NO_SUCH_VARIABLE"}},
            "reward.judge.token_env: names 'NO_SUCH_VARIABLE', which is not set",
        ),
        ("rollout", {"max_new_tokens": 128}, "do not fit into 128 tokens of context"),
        (
            "rollout",
            {"max_model_len": 256},
            "rollout.max_model_len: must be at most the model's 128",
        ),
        ("eval", {"every": 5}, "eval.data.path: must name held-out rows"),
        ("eval", {"data": {"path": "x.jsonl"}}, "eval.data.path: no such file"),
    ],
)
def test_what_does_not_exist_or_fit_is_named(good, section, change, expected):
    assert expected in refused({**good, section: {**good.get(section, {}), **change}})


def test_all_problems_come_at_once(good):
    good["data"] = {"path": "nowhere.jsonl"}
    good["rollout"] = {"max_new_tokens": 1000}
    message = refused(good)
    assert "2 problems" in message
    assert "nowhere.jsonl" in message
    assert "rollout.max_new_tokens" in message


@pytest.mark.parametrize("name", ["org/model", "org/model-2.5", "gpt2", "bert-base-uncased"])
def test_a_hub_name_is_taken_at_its_word(good, name):
    good["policy"] = {"model": {"path": name, "tokenizer": name}}
    preflight(GrpoConfig.model_validate(good))


@pytest.mark.parametrize("name", ["imdb", "org/data", "org/data:main", "glue:sst2"])
def test_a_hub_data_set_is_taken_at_its_word(good, name):
    good["data"] = {"path": name}
    preflight(GrpoConfig.model_validate(good))
    assert local_data(name) is None


@pytest.mark.parametrize("name", ["imdb.json", "imdb.v2", "a/b/c", "org/data:", "data/", "./imdb"])
def test_what_only_a_file_can_be_called_is_no_hub_data_set(good, name):
    good["data"] = {"path": name}
    assert f"data.path: no such file or folder: {name!r}" in refused(good)
    with pytest.raises(DataError, match="no data at"):
        local_data(name)


def test_a_mistyped_local_folder_is_no_hub_name(good, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for name in ("models/typo", "model.v2"):
        good["policy"] = {"model": {"path": name}}
        assert f"no such folder, and no hub name (org/name, or a name without dots): {name!r}" in (
            refused(good)
        )


def test_an_empty_data_file_is_refused(good, tmp_path):
    (tmp_path / "prompts.jsonl").write_text("")
    assert "is empty" in refused(good)


@pytest.mark.parametrize("name", ["a.tsv", "a.ndjson.zst", "a.arrow", "sub/a.csv.xz"])
def test_data_of_every_kind_is_taken_as_a_file_a_folder_or_a_pattern(good, tmp_path, name):
    file = tmp_path / "more" / name
    file.parent.mkdir(parents=True)
    file.write_text("x")
    pattern = f"{tmp_path}/more/**/a.*"
    for path in (file, file.parent, tmp_path / "more", pattern):
        preflight(GrpoConfig.model_validate({**good, "data": {"path": str(path)}}))
    file.rename(file.with_name("b.md"))
    for path, fault in (
        (pattern, "no data file matches"),
        (file.parent, "holds no data file; wanted a .json"),
        (file.with_name("b.md"), "must be a .json"),
    ):
        assert fault in refused({**good, "data": {"path": str(path)}})


def test_a_pipe_is_refused_and_not_waited_for(good, tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    good["data"] = {"path": str(tmp_path / "pipe.jsonl")}
    assert "must be a file or a folder" in refused(good)


def test_a_reward_file_that_is_not_python_is_refused(good, tmp_path):
    (tmp_path / "rewards.py").write_text("def score(:\n")
    assert "is not Python" in refused(good)


def test_a_reward_function_is_found_without_being_run(good, tmp_path):
    (tmp_path / "rewards.py").write_text("raise SystemExit\nfrom x import y as score\n")
    preflight(GrpoConfig.model_validate(good))


@pytest.mark.parametrize(
    ("changes", "passes"), [({"head_dim": 64}, True), ({"head_dim": 8}, False)]
)
def test_head_dimensions_that_the_cpu_engine_refuses(good, tmp_path, changes, passes):
    write_model(tmp_path / "model", **changes)
    if passes:
        preflight(GrpoConfig.model_validate(good))
    else:
        assert "the model's have 8" in refused(good)
        good["placement"] = {"policy": ON_GPU, "rollout": {"gpus_per_rank": 1}}
        preflight(GrpoConfig.model_validate(good))


def test_the_head_dimensions_are_vllms():
    cpu_attn = pytest.importorskip("vllm.v1.attention.backends.cpu_attn")
    from rlhf_ray.config.checks.model_files import CPU_HEAD_DIMS

    supported = cpu_attn.CPUAttentionBackend.get_supported_head_sizes()
    assert tuple(supported) == CPU_HEAD_DIMS


def test_tensor_parallelism_must_divide_the_heads(good):
    good["placement"] = {"policy": ON_GPU, "rollout": {"gpus_per_rank": 3}}
    assert "must divide the model's 2 heads, got 3" in refused(good)


def test_a_used_run_directory_is_refused_unless_resumed(good, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    good["run_dir"] = str(run_dir)
    preflight(GrpoConfig.model_validate(good))
    (run_dir / "config.yaml").write_text("")  # as a job leaves it that failed before its first step
    preflight(GrpoConfig.model_validate(good))
    (run_dir / "metrics.jsonl").write_text("")
    assert "is not empty" in refused(good)
    preflight(GrpoConfig.model_validate({**good, "resume": "auto"}))


def test_sft_checks_its_own(good):
    values = {"data": good["data"], "policy": good["policy"]}
    preflight(SftConfig.model_validate(values))
    message = refused({**values, "max_length": 999, "eval": {"every": 1}}, cls=SftConfig)
    assert "max_length: must be at most the model's 128, got 999" in message
    assert "eval.data.path" in message


@pytest.fixture
def no_login(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(("mode", "is_refused"), [("online", True), ("offline", False)])
@pytest.mark.usefixtures("no_login")
def test_only_a_run_at_wandb_needs_a_login(mode, is_refused):
    config = SftConfig.model_validate(
        {"data": {"path": "x"}, "policy": {"model": {"path": "a/b"}}, "wandb": {"mode": mode}}
    )
    found = [str(p) for p in find_problems(config) if p.path == ("wandb", "mode")]
    assert bool(found) == is_refused
    assert all("set WANDB_API_KEY, run `wandb login`, or set" in text for text in found)


@pytest.mark.usefixtures("no_login")
def test_a_key_or_a_noted_login_will_do(tmp_path):
    assert login_fault({}) is not None
    assert login_fault({"WANDB_API_KEY": "k"}) is None
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n login user\n password k\n")
    assert login_fault({}) is None
    other = login_fault({"WANDB_BASE_URL": "https://wandb.example"})
    assert other is not None and "wandb.example" in other
