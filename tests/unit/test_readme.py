"""The pages say what is true: their configurations, commands, code, rows and names are checked."""

import asyncio
import json
import re
import shlex
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from markdown_pages import README, ROOT, Page, all_code, blocks, of_program

from benchmarks.model_sizes import QWEN
from launch import data as data_command
from launch import jobs, plan, pool, submit, trace
from launch.cli import COMMANDS, CONFIGURED, RESTARTS, restarts_of
from rlhf_ray.algorithms.advantages import ADVANTAGES
from rlhf_ray.algorithms.correction import CORRECTIONS
from rlhf_ray.algorithms.kl import KL_ESTIMATORS
from rlhf_ray.algorithms.policy_losses import POLICY_LOSSES
from rlhf_ray.algorithms.preference_losses import PAIR_LOSSES
from rlhf_ray.algorithms.regularizers import LOSS_TERMS
from rlhf_ray.algorithms.supervised_losses import REWARD_LOSSES, SFT_LOSSES
from rlhf_ray.algorithms.value_losses import VALUE_LOSSES
from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.config.checks import references
from rlhf_ray.config.data import DataFormat
from rlhf_ray.config.jobs import PipelineConfig
from rlhf_ray.config.rewards import RewardFunctionConfig, ShapingConfig
from rlhf_ray.config.tools import schema, stages
from rlhf_ray.config.tools.load import find_config, load_config
from rlhf_ray.config.tools.stages import stages_of
from rlhf_ray.config.tools.yaml_file import read_yaml, write_yaml
from rlhf_ray.data.formats.table import ROW_FORMATS, recognise
from rlhf_ray.data.row import Row
from rlhf_ray.metrics.names import NAMES, PREFIXES
from rlhf_ray.models.shape import shape_of
from rlhf_ray.planning.layout import Cluster, shown_bytes
from rlhf_ray.planning.plan import plan_job
from rlhf_ray.rewards.batch import ScoringBatch
from rlhf_ray.rewards.functions import load_functions

ALGORITHMS = Page("rlhf_ray/algorithms/README.md")
CONFIGS = Page("configs/README.md")
DATA = Page("rlhf_ray/data/README.md")
FIGURES = Page("benchmarks/README.md")
MONITORING = Page("docker/README.md")
REWARDS = Page("rlhf_ray/rewards/README.md")
# A configuration file of the user's own; any other must be there.
PLACEHOLDER = re.compile(r"my[-_.\w]*\.yaml|runs/.*\.yaml")
REGISTRIES = (
    ADVANTAGES, POLICY_LOSSES, VALUE_LOSSES, KL_ESTIMATORS, CORRECTIONS, LOSS_TERMS,
    PAIR_LOSSES, REWARD_LOSSES, SFT_LOSSES,
)  # fmt: skip


def laid_over(below, above):
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = laid_over(merged[key], value) if both else value
    return merged


def job_blocks():
    """Parts of configurations, by page: ids stay when another page changes."""
    count = dict.fromkeys((block.page for block in blocks("yaml", "config")), 0)
    for block in blocks("yaml", "config"):
        number, count[block.page] = count[block.page], count[block.page] + 1
        for job in CONFIGURED if block.mark == "all" else block.mark.split(", "):
            yield pytest.param(job, block.body, id=f"{block.page}-{job}-{number}")


def whole_blocks():
    """Whole configuration files, which commands name: `<!-- job: grpo my-grpo.yaml -->`."""
    for block in blocks("yaml", "job"):
        job, file = block.mark.split()
        yield pytest.param(job, file, block.body, id=file)


def test_every_configuration_says_of_which_job_it_is():
    for block in blocks("yaml"):
        assert block.kind in ("config", "job"), (
            f"put <!-- config: JOB --> before this block of {block.page}:\n{block.body}"
        )


@pytest.mark.parametrize(("job", "body"), [*job_blocks()])
def test_every_configuration_is_valid(job, body, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    part = tmp_path / "part.yaml"
    part.write_text(body, encoding="utf-8")
    values = read_yaml(part).values
    whole = tmp_path / "whole.yaml"
    base = read_yaml(ROOT / f"configs/{job}/tiny-cpu.yaml").values
    if "sources" in values.get("data", {}):  # in place of the one data set
        del base["data"]
    write_yaml(laid_over(base, values), whole)
    config = load_config(CONFIGURED[job], whole)
    assert_functions_are_there(values)
    if isinstance(config, PipelineConfig):
        # Nothing is wrong with the stages but that the demo's files may not be there.
        monkeypatch.setattr(stages, "find_problems", lambda config: [])
        stages_of(config.model_copy(update={"run_dir": str(tmp_path)}))


@pytest.mark.parametrize(("job", "file", "body"), [*whole_blocks()])
def test_a_whole_configuration_is_valid_and_commands_name_it(job, file, body, tmp_path):
    (tmp_path / file).write_text(body, encoding="utf-8")
    load_config(CONFIGURED[job], tmp_path / file)
    assert_functions_are_there(read_yaml(tmp_path / file).values)
    named = [words for words in of_program("rlhf-ray") if file in words]
    assert ("rlhf-ray", job) in {words[:2] for words in named}


def test_the_first_configuration_fits_the_card_that_the_readme_names(tmp_path):
    [(job, file, body)] = [parameters.values for parameters in whole_blocks()]
    (tmp_path / file).write_text(body, encoding="utf-8")
    config = load_config(CONFIGURED[job], tmp_path / file)
    shapes = {config.policy.model.path: shape_of(QWEN[config.policy.model.path])}
    [words] = [words for words in of_program("rlhf-ray") if words[1] == "plan" and file in words]
    given, _ = plan.parser().parse_known_args(words[2:])
    assert f"one GPU with {given.gpu_memory:.0f} GB" in README.text
    card = Cluster(nodes=1, gpus_per_node=1, gpu_bytes=shown_bytes(given.gpu_memory), node_bytes=0)
    assert plan_job(config, shapes, card).problems == ()


def assert_functions_are_there(values):
    for function in values.get("reward", {}).get("functions", ()):
        if function["path"].startswith("rlhf_ray."):
            assert references.function_fault(function["path"]) is None


@pytest.mark.parametrize("words", of_program("rlhf-ray"), ids=" ".join)
def test_every_job_command_loads(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("RLHF_RAY_DATA", "/data")
    _, job, *rest = words
    own_arguments = {"pool": pool, "jobs": jobs}
    if job in own_arguments:
        assert own_arguments[job].parser().parse_args(rest).command
        return
    if job == "trace":
        assert trace.parser().parse_args(rest).run_dir
        return
    with_a_configuration = {"submit": submit, "data": data_command, "plan": plan}
    if job in with_a_configuration:
        given, overrides = with_a_configuration[job].parser().parse_known_args(rest)
        job, rest = given.job, [given.config, *overrides]
    assert job in CONFIGURED
    if rest == ["--help"]:
        return
    path, *overrides = restarts_of(rest)[1]
    if PLACEHOLDER.fullmatch(path):
        path = "tiny-cpu"
    load_config(CONFIGURED[job], find_config(job, path), overrides)


def test_every_command_in_the_text_is_one():
    """`rlhf-ray pool down` in a sentence; `JOB` and its like stand for any."""
    for code in all_code():
        if not code.startswith("rlhf-ray "):
            continue
        word = code.split()[1]
        assert word in {*CONFIGURED, *COMMANDS, "JOB", "--version", "--help"}, code


def test_every_make_command_is_a_target():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) \?=", makefile, re.MULTILINE))
    inline = [shlex.split(code) for code in all_code() if code.startswith("make ")]
    for words in [*of_program("make"), *inline]:
        for word in words[1:]:
            name, assigned, _ = word.partition("=")
            assert name in (variables if assigned else targets), " ".join(words)


def test_every_pytest_command_names_what_is_there():
    inline = [shlex.split(code) for code in all_code() if "python -m " in code]
    for words in [*of_program("python"), *inline]:
        words = words[next(n for n, word in enumerate(words) if Path(word).name == "python") :]
        if words[1].startswith("benchmarks/"):
            assert (ROOT / words[1]).is_file(), " ".join(words)
            continue
        assert words[1] == "-m", " ".join(words)
        if words[2] != "pytest":
            module = ROOT / words[2].replace(".", "/")
            assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file(), words
            continue
        for word in words[3:]:
            assert "/" not in word or (ROOT / word).exists(), " ".join(words)


OPTIONS_OF_ALL_JOBS = ("--help", "--a.b.c", RESTARTS)


def test_keys_given_as_options_in_the_text_exist():
    """`--policy.optim.lr 1e-6` in a sentence is a key of some job, or an option of the command."""
    for code in all_code():
        option = code.partition(" ")[0].partition("=")[0]
        if not re.fullmatch(r"--[a-z][\w.-]+", option) or option in OPTIONS_OF_ALL_JOBS:
            continue
        if any(
            option in command.parser().format_help() for command in (plan, submit, data_command)
        ):
            continue
        path = tuple(part.replace("-", "_") for part in option[2:].split("."))
        assert any(schema.at_path(job, path) is not None for job in CONFIGURED.values()), code


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.subject)
def test_every_registered_name_is_there(registry):
    assert set(registry) <= ALGORITHMS.code | CONFIGS.code


def test_every_choice_of_an_algorithm_is_there():
    values = {
        value
        for path in schema.all_paths(AlgorithmConfig)
        for member in schema.members(schema.at_path(AlgorithmConfig, path))
        if get_origin(member) is Literal
        for value in get_args(member)
    }
    assert {"token_mean", "adaptive", "mask"} <= values
    assert values <= ALGORITHMS.code
    assert set(ShapingConfig.model_fields) <= REWARDS.code


def test_every_metric_is_in_its_group():
    section = MONITORING.section("## Monitoring")
    rows = dict(re.findall(r"^\| `(\w+/)` \| (.+) \|$", section, re.MULTILINE))
    assert rows.keys() == {f"{name.partition('/')[0]}/" for name in NAMES} | PREFIXES.keys()
    for name in NAMES:
        group, _, leaf = name.partition("/")
        assert f"`{leaf}`" in rows[f"{group}/"], name


def test_metrics_named_elsewhere_exist():
    groups = {name.partition("/")[0] for name in NAMES}
    named = {code for code in all_code() if re.fullmatch(rf"({'|'.join(groups)})/\w+", code)}
    assert len(named) > 10
    assert named <= set(NAMES)


def test_the_reward_functions_of_the_example_work(tmp_path):
    [block] = [block for block in blocks("python", "file") if block.mark == "my_rewards.py"]
    file = tmp_path / block.mark
    file.write_text(block.body, encoding="utf-8")
    near, brief = load_functions(
        [
            RewardFunctionConfig(path=f"{file}:near_answer", arguments={"tolerance": 0.01}),
            RewardFunctionConfig(path=f"{file}:brief", arguments={"max_tokens": 1}),
        ]
    )
    batch = ScoringBatch(
        prompt_ids_B=["a:0", "a:1", "a:2"],
        prompts_B=["1 + 1?", [{"role": "user", "content": "2 + 2?"}], "?"],
        completions_B=["2.001", [{"role": "assistant", "content": "It is 5"}], "hm"],
        prompt_token_ids_B=[[1], [2], [3]],
        completion_ids_B=[[1], [2, 3], []],
        opens_reasoning_B=[False] * 3,
        columns={"answer": ["2", 4, None]},
    )
    assert asyncio.run(near.score(batch, timeout_s=10)) == [1.0, 0.0, None]
    assert asyncio.run(brief.score(batch, timeout_s=10)) == [1.0, 0.0, 1.0]


def test_every_format_has_an_example_that_is_recognised():
    section = DATA.section("## Your own data")
    examples = dict(re.findall(r"^\| `(\w+)` \| `(\{.+?\})` \|", section, re.MULTILINE))
    others = DATA.text.replace(section, "")
    published = dict(re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \|", others, re.MULTILINE))
    assert not set(examples) & set(published)
    assert {*examples, *published} == set(get_args(DataFormat)) - {"auto"}
    for name, example in examples.items():
        row = Row(row_id="x:0", where="README.md", columns=json.loads(example))
        assert recognise(row, kinds={ROW_FORMATS[name].kind}).name == name
    for name in set(published) - {"common_beginning"}:
        shown = ", ".join(f"`{column}`" for column in ROW_FORMATS[name].columns)
        assert published[name] == shown, name


def test_the_remote_protocol_has_one_score_a_row():
    request, answer = (json.loads(block.body) for block in blocks("json"))
    assert request.keys() == {"prompts", "completions", "columns"}
    lengths = {len(request["prompts"]), len(request["completions"]), len(answer["scores"])}
    lengths |= {len(values) for values in request["columns"].values()}
    assert len(lengths) == 1


def test_every_figure_has_its_row():
    section = FIGURES.section("## Measured figures")
    figures, _, commands = section.partition("<!-- measured: end -->")
    numbers = re.findall(r"^\| (\d+) \|", figures, re.MULTILINE)
    assert len(numbers) > 10
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]
    told = re.findall(r"^# \((\w)\)(?: to \((\w)\))?", commands, re.MULTILINE)
    letters = [chr(c) for a, b in told for c in range(ord(a), ord(b or a) + 1)]
    assert letters
    assert re.findall(r"\| \((\w)\) \|", figures) == letters
