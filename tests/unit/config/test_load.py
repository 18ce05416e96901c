"""Loading: file, overrides and errors."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.config.algorithm import KlConfig
from rlhf_ray.config.algorithm_table import POLICY_LOSSES
from rlhf_ray.config.online import GrpoConfig, PpoConfig
from rlhf_ray.config.supervised import SftConfig
from rlhf_ray.config.tools.load import dump_config, load_config
from rlhf_ray.config.tools.yaml_file import read_value, read_yaml, write_yaml
from rlhf_ray.errors import ConfigError

MINIMAL = """
data: {path: prompts.jsonl}
policy:
  model: {path: org/model}
reward:
  functions:
    - {path: "rewards.py:score"}
"""


@pytest.fixture
def yaml_path(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(MINIMAL)
    return path


def load_text(tmp_path, text, *arguments, cls=PpoConfig):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return load_config(cls, path, arguments)


def errors_of(tmp_path, text, *arguments, cls=PpoConfig):
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, text, *arguments, cls=cls)
    return str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "value_of", "expected"),
    [
        (["--policy.optim.lr", "1e-6"], lambda c: c.policy.optim.lr, 1e-6),
        (["--policy.optim.lr=1e-6"], lambda c: c.policy.optim.lr, 1e-6),
        (["--data.shuffle", "False"], lambda c: c.data.shuffle, False),
        (["--data.shuffle", "true"], lambda c: c.data.shuffle, True),
        (["--run-dir", "runs/x"], lambda c: c.run_dir, "runs/x"),
        (["--wandb.name", "1e-6"], lambda c: c.wandb.name, "1e-6"),
        (["--wandb.tags", "a", "2"], lambda c: c.wandb.tags, ["a", "2"]),
        (["--wandb.tags", "a"], lambda c: c.wandb.tags, ["a"]),
        (["--wandb.tags", "[a, b]"], lambda c: c.wandb.tags, ["a", "b"]),
        (["--rollout.stop=--"], lambda c: c.rollout.stop, ["--"]),
        (["--rollout.stop_token_ids", "3", "4"], lambda c: c.rollout.stop_token_ids, [3, 4]),
        (["--policy.optim.betas", "0.8", "0.9"], lambda c: c.policy.optim.betas, (0.8, 0.9)),
        (["--policy.zero.stage", "2"], lambda c: c.policy.zero.stage, 2),
        (
            ["--policy.model.lora.target_modules", "q_proj"],
            lambda c: c.policy.model.lora.target_modules,
            ["q_proj"],
        ),
        (
            ["--policy.model.lora.target_modules", "all-linear"],
            lambda c: c.policy.model.lora.target_modules,
            "all-linear",
        ),
        (["--rollout.engine.swap", "3"], lambda c: c.rollout.engine, {"swap": 3}),
        (["--rollout.engine", "{a: 1e-3}"], lambda c: c.rollout.engine, {"a": 1e-3}),
        (
            ["--placement.policy.resources.node-a", "1"],
            lambda c: c.placement.policy.resources,
            {"node-a": 1.0},
        ),
        (["--reward.functions.0.weight", "2"], lambda c: c.reward.functions[0].weight, 2.0),
        (["--reward.functions.1.path", "b.py:f"], lambda c: c.reward.functions[1].path, "b.py:f"),
    ],
)
def test_an_override_sets_its_key(yaml_path, arguments, value_of, expected):
    assert value_of(load_config(PpoConfig, yaml_path, arguments)) == expected


def test_overrides_may_supply_what_the_file_lacks(tmp_path):
    config = load_text(
        tmp_path,
        "total_steps: 3\ndata:\n",
        *["--data.path", "x", "--policy.model.path", "m", "--reward.functions.0.path", "r.py:f"],
    )
    assert config.data.path == "x"
    assert config.reward.functions[0].path == "r.py:f"


def test_the_last_of_two_overrides_wins(yaml_path):
    assert load_config(PpoConfig, yaml_path, ["--seed", "1", "--seed", "2"]).seed == 2


@pytest.mark.parametrize("text", ["1e-6", "1E-6", "1.5e3", "+1e6", ".5e-2"])
def test_exponents_are_numbers(text):
    assert read_value(text) == float(text)


def test_a_section_given_in_part_keeps_the_jobs_defaults(tmp_path):
    config = load_text(tmp_path, MINIMAL + "algorithm: {kl: {coefficient: 0.2}}\n")
    assert config.algorithm.advantage == "gae"
    assert (
        config.algorithm.minibatches
        == PpoConfig.model_fields["algorithm"].get_default(call_default_factory=True).minibatches
    )
    assert (config.algorithm.kl.coefficient, config.algorithm.kl.where) == (0.2, "reward")
    assert load_text(tmp_path, MINIMAL, cls=GrpoConfig).algorithm.advantage == "grpo"


def test_environment_variables_are_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HERE", "/data")
    monkeypatch.delenv("NOT_HERE", raising=False)
    text = MINIMAL.replace("prompts.jsonl", "'${HERE}/${NOT_HERE:-a-b}.jsonl'")
    assert load_text(tmp_path, text).data.path == "/data/a-b.jsonl"


def test_an_unset_variable_is_named_with_its_line(tmp_path, monkeypatch):
    monkeypatch.delenv("NOT_HERE", raising=False)
    message = errors_of(tmp_path, MINIMAL.replace("prompts.jsonl", "'${NOT_HERE}/x'"))
    assert "data.path (line 2): environment variable NOT_HERE is not set" in message


@pytest.mark.parametrize(
    ("more", "arguments", "expected"),
    [
        ("sed: 3", [], r"sed \(line 8\): unknown key, did you mean seed\?"),
        ("", ["--polcy.optim.lr", "3"], r"polcy \(command line\): .*did you mean policy\?"),
        ("", ["--policy.lr", "3"], r"did you mean policy\.optim\.lr\?"),
        ("", ["--policy.optim.zzz", "3"], r"unknown key; allowed here: lr, betas, eps"),
        ("seed: -1", [], r"seed \(line 8\): must be an integer of at least 0, got -1"),
        ("seed: x", [], r"seed \(line 8\): must be an integer of at least 0, got 'x'"),
        ("", ["--total_steps", "0"], r"total_steps \(command line\): .* above 0, got 0"),
        ("", ["--policy.optim.lr", ".inf"], r"policy\.optim\.lr .* must be a number above 0"),
        ("", ["--policy.zero.stage", "7"], r"must be one of 0, 1, 2, 3, got 7"),
        ("", ["--policy.optim.betas", "1", "2"], r"betas\.1.*at least 0 and at most 1, got 2"),
        ("", ["--policy.model.dtype", "fp16"], r"one of 'auto', 'float32', 'bfloat16', got 'fp16'"),
        ("eval: {data: 3}", [], r"eval\.data \(line 8\): must be a section with the keys path"),
        ("", ["--data.path", "a", "b"], r"data\.path \(command line\): takes one value"),
        ("", ["--seed"], r"seed \(command line\): needs a value: an integer"),
        ("", ["stray"], r"expected an option such as --seed 1, got 'stray'"),
        ("", ["--reward.functions.7.path", "x"], r"no entry 7 in a list of 1"),
        ("seed: 1\nseed: 2", [], r"seed: given twice, in lines 8 and 9"),
        ("policy:", [], r"policy: given twice"),
        ("seed: 3", ["--seed.x", "1"], r"seed\.x \(command line\): seed has no keys below it"),
        (
            "",
            ["--policy.zero.offload_param", "cpu"],
            r"policy\.zero .*offload_param needs stage 3, got stage 0",
        ),
        ("", ["--resume", "auto"], r"resume 'auto' needs run_dir"),
        (
            "",
            ["--algorithm.kl.where", "loss", "--algorithm.kl.estimator", "k1"],
            r"algorithm\.kl .*k1 has no gradient in the loss, on average: take k2 or k3",
        ),
        (
            "",
            ["--algorithm.kl.estimator", "k3"],
            r"algorithm\.kl .*k3 in the reward has another gradient than the KL's: take k1 there",
        ),
        (
            "",
            ["--algorithm.kl.importance_weight", "true"],
            r"importance_weight is for estimator k3 with where: loss, got k1 with where: reward",
        ),
        (
            "",
            ["--algorithm.truncated", "bootstrap", "--algorithm.advantage", "rloo"],
            r"bootstrap takes a critic's value, which only advantage gae has, got rloo",
        ),
        (
            "",
            ["--algorithm.advantage", "gdpo"],
            r"algorithm .*kl\.where must be loss for advantage gdpo",
        ),
        (
            "algorithm: {advantage: gdpo, kl: {where: loss}}",
            ["--reward.shaping.clip", "3"],
            r"shaping\.clip and \.whiten .* advantage gdpo .*'clip': 3\.0, 'whiten': False",
        ),
        (
            "",
            ["--rollout.max_num_seqs", "9000"],
            r"rollout .*max_num_batched_tokens must be at least max_num_seqs \(9000\), got 8192",
        ),
        (
            "",
            ["--rollout.engine.gpu_memory_utilization", "0.5"],
            r"engine must not set gpu_memory_utilization: rollout\.gpu_memory_share does",
        ),
        ("", ["--algorithm.clip_low", "-1"], r"a number of at least 0 or null, got -1"),
        (
            "",
            ["--algorithm.policy_loss", "gsp"],
            r"^[^\n]*1 problem.*\n.*policy_loss .*must be one of 'ppo', 'gspo'[^\n]*$",
        ),
        (
            "total_steps: 5",
            ["--value.warmup_steps", "5"],
            r"value\.warmup_steps must be below total_steps \(5\), got 5",
        ),
        (
            "",
            ["--value.warmup_steps", "5", "--algorithm.advantage", "grpo"],
            r"value\.warmup_steps must be 0 without a critic \(advantage grpo\), got 5",
        ),
        (
            "placement: {rollout: {ranks: 8, gpus_per_rank: 1}}",
            [
                *("--placement.policy.share", "rollout", "--placement.policy.ranks", "4"),
                *("--placement.policy.gpus_per_rank", "1"),
            ],
            r"set placement\.policy\.ranks to 8 or placement\.rollout\.ranks to 4",
        ),
        (
            "placement: {policy: {gpus_per_rank: 1}, rollout: {gpus_per_rank: 1, share: policy}}",
            ["--max-staleness", "2"],
            r"max_staleness must be 0 where policy and the engines share GPUs, .*, got 2: give "
            r"rollout GPUs of its own$",
        ),
        (
            "",
            ["--max-staleness", "1", "--algorithm.correction.kind", "none"],
            r"correction\.kind must not be none with max_staleness 1: .*allow_uncorrected: true",
        ),
    ],
)
def test_an_error_says_where_what_and_what_is_allowed(tmp_path, more, arguments, expected):
    assert re.search(expected, errors_of(tmp_path, MINIMAL + more + "\n", *arguments))


def test_stale_rollouts_are_trained_uncorrected_where_that_is_asked_for(tmp_path):
    given = ["--max-staleness", "1", "--algorithm.correction.kind", "none"]
    config = load_text(tmp_path, MINIMAL, *given, "--algorithm.correction.allow_uncorrected", "yes")
    assert config.max_staleness == 1


def test_a_missing_section_is_named(tmp_path):
    message = errors_of(tmp_path, "seed: 1\n", cls=SftConfig)
    assert "data: is missing" in message
    assert "policy: is missing" in message


def test_all_problems_of_file_and_command_line_come_at_once(tmp_path):
    message = errors_of(
        tmp_path, MINIMAL + "sed: 1\ntotal_steps: 0\n", "--rollout.temperature", "-1", "--seed"
    )
    assert "4 problems" in message
    assert message.count("\n") == 4


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a: [1", r"not valid YAML: line \d+"),
        (b"- 1", "must hold keys with values, got list"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"a: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_an_unreadable_file_is_one_error(tmp_path, content, expected):
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=expected):
        load_config(PpoConfig, path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such configuration file"):
        load_config(PpoConfig, tmp_path / "nowhere.yaml")


def test_a_dumped_configuration_loads_as_itself(yaml_path, tmp_path):
    config = load_config(
        PpoConfig, yaml_path, ["--wandb.name", "1e-6", "--rollout.stop", "yes", "\n", "3"]
    )
    dump_config(config, tmp_path / "resolved.yaml")
    assert load_config(PpoConfig, tmp_path / "resolved.yaml") == config


@given(
    values=st.dictionaries(
        st.text(min_size=1),
        st.text().filter(lambda text: "${" not in text)
        | st.floats(allow_nan=False)
        | st.integers(),
    )
)
def test_yaml_round_trip(tmp_path_factory, values):
    path: Path = tmp_path_factory.mktemp("yaml") / "x.yaml"
    write_yaml(values, path)
    assert read_yaml(path).values == values


@pytest.mark.parametrize("name", sorted(POLICY_LOSSES))
def test_clip_bounds_are_those_of_the_loss_unless_given(tmp_path, name):
    """Also where a job's defaults, a file and the command line are laid over each other."""
    file = tmp_path / "job.yaml"
    file.write_text(MINIMAL)
    ours = ["--algorithm.policy_loss", name]
    bounds = (POLICY_LOSSES[name].clip_low, POLICY_LOSSES[name].clip_high)
    plain = load_config(PpoConfig, file, ours).algorithm
    assert (plain.clip_low, plain.clip_high) == bounds
    # The resolved configuration shows them, and loads as an equal one.
    dump_config(load_config(PpoConfig, file, ours), tmp_path / "resolved.yaml")
    written = read_yaml(tmp_path / "resolved.yaml").values["algorithm"]
    assert (written["clip_low"], written["clip_high"]) == bounds
    assert load_config(PpoConfig, tmp_path / "resolved.yaml").algorithm == plain
    given = load_config(PpoConfig, file, [*ours, "--algorithm.clip_high", "0.28"]).algorithm
    assert (given.clip_low, given.clip_high) == (bounds[0], 0.28)
    free = load_config(PpoConfig, file, [*ours, "--algorithm.clip_low", "null"]).algorithm
    assert (free.clip_low, free.clip_high) == (None, bounds[1])


@pytest.mark.parametrize(("where", "estimator"), [("reward", "k1"), ("loss", "k3")])
def test_the_estimator_of_the_kl_is_that_of_its_place_unless_given(where, estimator):
    assert KlConfig.model_validate({"where": where}).estimator == estimator
    assert KlConfig.model_validate({"where": "loss", "estimator": "k2"}).estimator == "k2"
