"""The README says what is true: its configurations, commands, code, rows and names are checked."""

import asyncio
import json
import re
import shlex
from pathlib import Path
from typing import Literal, get_args, get_origin
from urllib.parse import unquote

import pytest

from launch import data as data_command
from launch import jobs, plan, pool, submit
from launch.cli import CONFIGURED
from rlhf_ray.algorithms.advantages import ADVANTAGES
from rlhf_ray.algorithms.correction import CORRECTIONS
from rlhf_ray.algorithms.kl import KL_ESTIMATORS
from rlhf_ray.algorithms.policy_losses import POLICY_LOSSES
from rlhf_ray.algorithms.preference_losses import PAIR_LOSSES
from rlhf_ray.algorithms.regularizers import LOSS_TERMS
from rlhf_ray.algorithms.reward_losses import REWARD_LOSSES
from rlhf_ray.algorithms.sft_losses import SFT_LOSSES
from rlhf_ray.algorithms.value_losses import VALUE_LOSSES
from rlhf_ray.config import references, schema, stages
from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.config.data import DataFormat
from rlhf_ray.config.load import load_config
from rlhf_ray.config.pipeline import PipelineConfig
from rlhf_ray.config.rewards import RewardFunctionConfig, ShapingConfig
from rlhf_ray.config.stages import resolve_stages
from rlhf_ray.config.yaml_file import read_yaml, write_yaml
from rlhf_ray.data.files import Row
from rlhf_ray.data.recognition import recognise
from rlhf_ray.data.row_formats import ROW_FORMATS
from rlhf_ray.metrics.names import NAMES, PREFIXES
from rlhf_ray.rewards.batch import ScoringBatch
from rlhf_ray.rewards.functions import load_functions

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"(?:<!-- (?P<kind>\w+): (?P<mark>[\w., ]+) -->\n)?^```(?P<language>\w+)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
BLOCKS = [match.groupdict() for match in BLOCK.finditer(TEXT)]
# A configuration file of the user's own; any other must be there.
PLACEHOLDER = re.compile(r"my[-_.\w]*\.yaml|runs/.*\.yaml")
REGISTRIES = (
    ADVANTAGES, POLICY_LOSSES, VALUE_LOSSES, KL_ESTIMATORS, CORRECTIONS, LOSS_TERMS,
    PAIR_LOSSES, REWARD_LOSSES, SFT_LOSSES,
)  # fmt: skip
CODE = set(re.findall(r"`([^`\n]+)`", TEXT))


def between(begin, end):
    """The part of the page from one text to the next of another; both must be there."""
    assert TEXT.count(begin) == 1, f"{begin!r} must be there once, got {TEXT.count(begin)}"
    rest = TEXT.partition(begin)[2]
    assert end in rest, f"nothing ends the part that begins with {begin!r}: {end!r} is gone"
    found = rest.partition(end)[0]
    assert found.strip(), f"nothing stands between {begin!r} and {end!r}"
    return found


def bodies(language, kind=None):
    found = [b for b in BLOCKS if b["language"] == language and (not kind or b["kind"] == kind)]
    assert found, f"no {language} block ({kind})"
    return found


def commands():
    """Every command line of the shell blocks, as words, without what a comment or variable adds."""
    for block in bodies("bash"):
        for line in block["body"].replace("\\\n", " ").splitlines():
            for part in line.split(" && "):
                words = shlex.split(part, comments=True)
                while words and re.fullmatch(r"\w+=.*", words[0]):
                    words.pop(0)
                if words:
                    yield words


def of_program(name):
    found = [words for words in commands() if Path(words[0]).name == name]
    assert found, f"no command {name}"
    return found


def laid_over(below, above):
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = laid_over(merged[key], value) if both else value
    return merged


CONFIGS = [
    pytest.param(job, block["body"], id=f"{job}-{number}")
    for number, block in enumerate(bodies("yaml"))
    for job in (CONFIGURED if block["mark"] == "all" else (block["mark"] or "unmarked").split(", "))
]


@pytest.mark.parametrize(("job", "body"), CONFIGS)
def test_every_configuration_is_valid(job, body, tmp_path, monkeypatch):
    assert job in CONFIGURED, f"put <!-- config: JOB --> before this block:\n{body}"
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
    for function in values.get("reward", {}).get("functions", ()):
        if function["path"].startswith("rlhf_ray."):
            assert references.function_fault(function["path"]) is None
    if isinstance(config, PipelineConfig):
        # Nothing is wrong with the stages but that the demo's files may not be there.
        monkeypatch.setattr(stages, "find_problems", lambda config: [])
        resolve_stages(config.model_copy(update={"run_dir": str(tmp_path)}))


@pytest.mark.parametrize("words", of_program("rlhf-ray"), ids=" ".join)
def test_every_job_command_loads(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, job, *rest = words
    if job == "pool":
        assert pool.parser().parse_args(rest).command
        return
    if job == "jobs":
        assert jobs.parser().parse_args(rest).command
        return
    if job == "submit":
        given, overrides = submit.parser().parse_known_args(rest)
        mine = PLACEHOLDER.fullmatch(given.config)
        path = f"configs/{given.job}/tiny-cpu.yaml" if mine else given.config
        monkeypatch.setenv("RLHF_RAY_DATA", "/data")
        load_config(CONFIGURED[given.job], path, overrides)
        return
    if job == "data":
        given, overrides = data_command.parser().parse_known_args(rest)
        monkeypatch.setenv("RLHF_RAY_DATA", "/data")
        load_config(CONFIGURED[given.job], given.config, overrides)
        return
    if job == "plan":
        given, _ = plan.parser().parse_known_args(rest)
        load_config(CONFIGURED[given.job], given.config)
        return
    assert job in CONFIGURED
    if rest == ["--help"]:
        return
    path, *overrides = rest
    if PLACEHOLDER.fullmatch(path):
        path = f"configs/{job}/tiny-cpu.yaml"
    load_config(CONFIGURED[job], path, overrides)


def test_every_make_command_is_a_target():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) \?=", makefile, re.MULTILINE))
    inline = [shlex.split(code) for code in CODE if code.startswith("make ")]
    for words in [*of_program("make"), *inline]:
        for word in words[1:]:
            name, assigned, _ = word.partition("=")
            assert name in (variables if assigned else targets), " ".join(words)


def test_every_pytest_command_names_what_is_there():
    for words in of_program("python"):
        if words[1].startswith("benchmarks/"):
            assert (ROOT / words[1]).is_file(), " ".join(words)
            continue
        if words[1] == "-m" and words[2].startswith("benchmarks."):
            assert (ROOT / f"{words[2].replace('.', '/')}.py").is_file(), " ".join(words)
            continue
        assert words[1:3] == ["-m", "pytest"]
        for word in words[3:]:
            assert "/" not in word or (ROOT / word).exists(), " ".join(words)


def test_keys_given_as_options_in_the_text_exist():
    """`--policy.optim.lr 1e-6` in a sentence is a key of some job, or an option of the command."""
    for code in CODE:
        option = code.partition(" ")[0].partition("=")[0]
        if not re.fullmatch(r"--[a-z][\w.-]+", option) or option in ("--help", "--a.b.c"):
            continue
        if any(
            option in command.parser().format_help() for command in (plan, submit, data_command)
        ):
            continue
        path = tuple(part.replace("-", "_") for part in option[2:].split("."))
        assert any(schema.at_path(job, path) is not None for job in CONFIGURED.values()), code


def test_every_link_leads_somewhere():
    headings = re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXT):
        if target.startswith("#"):
            assert unquote(target[1:]) in anchors, target
        elif "://" not in target:
            assert (ROOT / target).exists(), target


def test_the_layout_names_every_package_and_nothing_else():
    section = between("\n## Layout of the repository\n", "\n## ")
    folders = set(re.findall(r"`([\w/]+/)`", section))
    packages = {
        f"{file.parent.relative_to(ROOT)}/"
        for top in ("rlhf_ray", "actors", "launch")
        for file in (ROOT / top).rglob("__init__.py")
    }
    assert packages - {"actors/"} <= folders, "all of `actors` is in its parts"
    assert {folder for folder in folders if not (ROOT / folder).is_dir()} == set()
    files = set(re.findall(r"`(?:rlhf_ray/)?(\w+\.py)`", section))
    assert files == {file.name for file in (ROOT / "rlhf_ray").glob("*.py")} - {"__init__.py"}


def test_files_told_in_one_step_exist():
    section = between("\n### One step of PPO\n", "\n## Jobs\n")
    files = re.findall(r"`([\w/]+\.py)`", section)
    assert len(files) > 8
    for file in files:
        assert any((ROOT / parent / file).is_file() for parent in ("", "rlhf_ray")), file


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.subject)
def test_every_registered_name_is_there(registry):
    assert set(registry) <= CODE


def test_every_choice_of_an_algorithm_is_there():
    values = {
        value
        for path in schema.all_paths(AlgorithmConfig)
        for member in schema.members(schema.at_path(AlgorithmConfig, path))
        if get_origin(member) is Literal
        for value in get_args(member)
    }
    assert {"token_mean", "adaptive", "mask"} <= values
    assert values <= CODE
    assert set(ShapingConfig.model_fields) <= CODE


def test_every_metric_is_in_its_group():
    section = between("\n## Monitoring\n", "\n## ")
    rows = dict(re.findall(r"^\| `(\w+/)` \| (.+) \|$", section, re.MULTILINE))
    assert rows.keys() == {f"{name.partition('/')[0]}/" for name in NAMES} | PREFIXES.keys()
    for name in NAMES:
        group, _, leaf = name.partition("/")
        assert f"`{leaf}`" in rows[f"{group}/"], name


def test_metrics_named_elsewhere_exist():
    groups = {name.partition("/")[0] for name in NAMES}
    named = {code for code in CODE if re.fullmatch(rf"({'|'.join(groups)})/\w+", code)}
    assert len(named) > 10
    assert named <= set(NAMES)


def test_the_reward_functions_of_the_example_work(tmp_path):
    [block] = bodies("python", "file")
    file = tmp_path / block["mark"]
    file.write_text(block["body"], encoding="utf-8")
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
    section = between("\n## Your own data\n", "\n## ")
    examples = dict(re.findall(r"^\| `(\w+)` \| `(\{.+?\})` \|", section, re.MULTILINE))
    page = (ROOT / "rlhf_ray/data/README.md").read_text(encoding="utf-8")
    published = dict(re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \|", page, re.MULTILINE))
    assert not set(examples) & set(published)
    assert {*examples, *published} == set(get_args(DataFormat)) - {"auto"}
    for name, example in examples.items():
        row = Row(row_id="x:0", where="README.md", columns=json.loads(example))
        assert recognise(row, kinds={ROW_FORMATS[name].kind}).name == name
    for name in set(published) - {"common_beginning"}:
        shown = ", ".join(f"`{column}`" for column in ROW_FORMATS[name].columns)
        assert published[name] == shown, name


def test_the_remote_protocol_has_one_score_a_row():
    request, answer = (json.loads(block["body"]) for block in bodies("json"))
    assert request.keys() == {"prompts", "completions", "columns"}
    lengths = {len(request["prompts"]), len(request["completions"]), len(answer["scores"])}
    lengths |= {len(values) for values in request["columns"].values()}
    assert len(lengths) == 1


def test_every_figure_has_its_row():
    figures = between("<!-- measured: begin -->", "<!-- measured: end -->")
    numbers = re.findall(r"^\| (\d+) \|", figures, re.MULTILINE)
    assert len(numbers) > 10
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]
    told = re.findall(
        r"^# \((\w)\)(?: to \((\w)\))?", between("measured: end -->", "\n## "), re.MULTILINE
    )
    letters = [chr(c) for a, b in told for c in range(ord(a), ord(b or a) + 1)]
    assert letters
    assert re.findall(r"\| \((\w)\) \|", figures) == letters
