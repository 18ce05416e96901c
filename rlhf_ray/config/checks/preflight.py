"""What can be known to fail before Ray starts: files, functions and limits of the model.

Also which files a job's actors read on their own nodes, role by role, where a cluster may lack
them; the driver reads data.
"""

from __future__ import annotations

import netrc
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

from rlhf_ray.config.checks import model_files, references
from rlhf_ray.config.checks.model_files import CPU_HEAD_DIMS, Kind, ModelLimits, read_limits
from rlhf_ray.config.jobs import AnyJob
from rlhf_ray.config.models import CHAT_TEMPLATE_NAMES, ModelConfig, ModelSource
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.run import STATUS_FILE, JobConfig, RunConfig
from rlhf_ray.config.supervised import SupervisedConfig
from rlhf_ray.config.tools.problems import Problem, raise_for

# A key, and what is wrong there; None for nothing.
Checked: TypeAlias = tuple[str, str | None]

# What a job leaves in its folder that failed before its first step.
_BEFORE_THE_FIRST_STEP = frozenset({"config.yaml", STATUS_FILE, "tokenizer"})
# Any of these is a login to W&B itself.
_WANDB_KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")


def preflight(config: RunConfig) -> None:
    """Check what a configuration points at.

    Hub names are taken at their word: asking the hub is the job's first step.

    Raises:
        ConfigError: With every problem found.
    """
    raise_for(find_problems(config), source="before the start")


def find_problems(config: RunConfig) -> list[Problem]:
    """Everything that is wrong with what a configuration points at."""
    checked = [("run_dir", _run_dir_fault(config))]
    if config.wandb.mode == "online":
        checked.append(("wandb.mode", login_fault()))
    match config:
        case OnlineConfig():
            checked += _online(config)
        case SupervisedConfig():
            checked += _supervised(config)
    return [Problem(path=tuple(key.split(".")), message=fault) for key, fault in checked if fault]


def login_fault(environment: Mapping[str, str] = os.environ) -> str | None:
    """None where there is a login to W&B, which is not imported; else what to do."""
    if any(environment.get(key) for key in _WANDB_KEYS):
        return None
    host = urlsplit(environment.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    if host in _netrc_hosts(environment):
        return None
    return (
        f"'online' needs a login to {host}: set WANDB_API_KEY, run `wandb login`, or set "
        "wandb.mode to 'offline'"
    )


def _netrc_hosts(environment: Mapping[str, str]) -> set[str]:
    """The machines whose logins `wandb login` and others have noted."""
    home = Path.home()
    named = environment.get("NETRC")
    for path in [Path(named).expanduser()] if named else [home / ".netrc", home / "_netrc"]:
        try:
            return set(netrc.netrc(path).hosts)
        except (OSError, netrc.NetrcParseError):  # W&B would find nothing in it either
            continue
    return set()


def _run_dir_fault(config: RunConfig) -> str | None:
    folder = Path(config.run_dir)
    if not config.run_dir or not folder.exists():
        return None
    if not folder.is_dir():
        return f"must be a folder, got the file {config.run_dir!r}"
    if config.resume != "never" or {path.name for path in folder.iterdir()} <= (
        _BEFORE_THE_FIRST_STEP
    ):
        return None
    return f"{config.run_dir!r} is not empty: take another, or go on with it by --resume auto"


def _supervised(config: SupervisedConfig) -> Iterator[Checked]:
    model = config.learner.model
    yield from _trained(f"{config.trained_role}.model", model, config.model_kind)
    yield from _data_sets(config)
    if config.uses_reference_role:
        yield from _frozen("reference.model", config.models["reference"])
    yield "max_length", _excess(config.max_length, read_limits(Path(model.path)))


def _online(config: OnlineConfig) -> Iterator[Checked]:
    policy, value = config.policy.model, config.value.model
    yield from _trained("policy.model", policy, "causal")
    if config.uses_value and value.path:
        yield from _trained("value.model", value, "critic")
    if config.uses_reference_role:
        yield from _frozen("reference.model", config.reference.model)
    yield from _data_sets(config)
    for index, function in enumerate(config.reward.functions):
        yield f"reward.functions.{index}.path", references.function_fault(function.path)
    if path := config.environment.path:
        yield "environment.path", references.function_fault(path)
    if config.environment.reasoning_gym and find_spec("reasoning_gym") is None:
        yield "environment.reasoning_gym", references.NEEDS_REASONING_GYM
    is_here = not (config.ray.address or config.ray.pool)  # elsewhere a node may have it
    services = {"remote": config.reward.remote, "judge": config.reward.judge}
    for name, service in services.items():
        token_env = service.token_env
        if service.url and token_env and is_here and not os.environ.get(token_env):
            fault = f"names {token_env!r}, which is not set in the environment"
            yield f"reward.{name}.token_env", fault
    scorer = config.reward.model
    if scorer.path:
        yield "reward.model.path", references.model_fault(scorer.path)
        yield from _kind("reward.model", scorer.path, "classifier")
        limits = read_limits(Path(scorer.path))
        yield "reward.model.max_length", _excess(scorer.max_length, limits)
    if scorer.tokenizer:
        yield "reward.model.tokenizer", references.tokenizer_fault(scorer.tokenizer)
    limits = read_limits(Path(policy.path))
    if limits is not None:
        yield from _engine(config, limits)
        yield from _context(config, limits)


def _engine(config: OnlineConfig, limits: ModelLimits) -> Iterator[Checked]:
    """What vLLM takes: on a CPU some sizes of heads, on GPUs as many heads as it can divide."""
    gpus, kv_heads = config.placement.rollout.gpus_per_rank, limits.num_kv_heads
    if gpus == 0 and limits.head_dim and limits.head_dim not in CPU_HEAD_DIMS:
        yield (
            "policy.model.path",
            f"vLLM on CPU takes attention heads of dimension {', '.join(map(str, CPU_HEAD_DIMS))}; "
            f"the model's have {limits.head_dim}",
        )
    if gpus <= 1:
        return
    key = "placement.rollout.gpus_per_rank"
    if limits.num_heads and limits.num_heads % gpus:
        yield (
            key,
            f"tensor parallelism must divide the model's {limits.num_heads} heads, got {gpus}",
        )
    # Fewer key and value heads than GPUs are copied.
    elif kv_heads and (kv_heads % gpus if kv_heads > gpus else gpus % kv_heads):
        yield (
            key,
            f"tensor parallelism must divide the model's {kv_heads} key and value heads or be a "
            f"multiple of them, got {gpus}",
        )


def _context(config: OnlineConfig, limits: ModelLimits) -> Iterator[Checked]:
    max_model_len, new = config.rollout.max_model_len, config.rollout.max_new_tokens
    yield "rollout.max_model_len", _excess(max_model_len, limits)
    room = max_model_len or limits.context_tokens
    for section, data in config.data_sets.items():
        prompt = data.prompt_tokens or data.max_prompt_tokens or 1
        if room and prompt + new > room:
            yield (
                "rollout.max_new_tokens",
                f"prompts of {section} ({prompt} tokens) and {new} new tokens do not fit "
                f"into {room} tokens of context",
            )


def _excess(given: int, limits: ModelLimits | None) -> str | None:
    """Whether so many tokens are more than a model can take at once."""
    context = limits.context_tokens if limits else None
    if context and given > context:
        return f"must be at most the model's {context}, got {given}"
    return None


def _data_sets(config: AnyJob) -> Iterator[Checked]:
    data_sets = {"data": config.data, "eval.data": config.eval.data, **config.data_sets}
    for key, data in data_sets.items():
        if data.path:
            yield f"{key}.path", references.data_fault(data.path)
        for index, source in enumerate(data.sources):
            yield f"{key}.sources.{index}.path", references.data_fault(source.path)
        if not data.is_named and config.eval.every:
            yield f"{key}.path", f"must name held-out rows, as eval.every is {config.eval.every}"


def _trained(key: str, model: ModelConfig, kind: Kind) -> Iterator[Checked]:
    yield from _model(key, model)
    config = model_files.read_json(Path(model.path) / "config.json") or {}
    yield _of_model(key, model.path, model_files.quantization_fault(config, model))
    yield from _kind(key, model.path, kind)


def _frozen(key: str, model: ModelConfig) -> Iterator[Checked]:
    """A model that takes the policy's start where it names none."""
    if model.path:
        yield from _model(key, model)
        yield from _kind(key, model.path, "causal")


def _model(key: str, model: ModelConfig) -> Iterator[Checked]:
    yield f"{key}.path", references.model_fault(model.path)
    if model.quantization != "none" and find_spec("bitsandbytes") is None:
        yield (
            f"{key}.quantization",
            f"{model.quantization!r} needs the package bitsandbytes; install it, or set 'none'",
        )
    if model.kernels == "liger" and find_spec("liger_kernel") is None:
        yield f"{key}.kernels", "'liger' needs the package liger-kernel; install it, or set 'torch'"
    if model.tokenizer:
        yield f"{key}.tokenizer", references.tokenizer_fault(model.tokenizer)
    template = model.chat_template
    known = not template or "{" in template or template in CHAT_TEMPLATE_NAMES
    if not known and not Path(template).is_file():
        yield (
            f"{key}.chat_template",
            f"must be one of {', '.join(CHAT_TEMPLATE_NAMES)}, Jinja text or a file's path, "
            f"got {template!r}",
        )


def _kind(key: str, path: str, kind: Kind) -> Iterator[Checked]:
    """What a model's own files say against it; nothing of a hub's name."""
    folder = Path(path)
    config = model_files.read_json(folder / "config.json")
    if config is None:
        return
    generation = model_files.read_json(folder / "generation_config.json") or {}
    yield _of_model(key, path, model_files.kind_fault(config, kind))
    for fault in model_files.token_id_faults(config, generation):
        yield _of_model(key, path, fault)
    yield f"{key}.path", model_files.untied_head_fault(folder, config)


def _of_model(key: str, path: str, fault: str | None) -> Checked:
    return f"{key}.path", fault and f"{path!r} {fault}"


@dataclass(frozen=True, kw_only=True)
class NodePath:
    """A path and the key of the configuration that it stands at."""

    key: str
    path: str


def node_paths(config: JobConfig) -> dict[str, tuple[NodePath, ...]]:
    """What each role's actors read where they are; the policy's start where a role names no model.

    What this machine does not have is a hub's or an import's name, and is left out.
    """
    named = {role: _paths(role, model) for role, model in config.models.items() if model.path}
    if isinstance(config, OnlineConfig):
        functions = {
            f"reward.functions.{index}.path": function.path
            for index, function in enumerate(config.reward.functions)
        }
        named["reward"] = _paths("reward", config.reward.model)
        named["reward_worker"] = _scripts(functions)
        named["environment"] = _scripts({"environment.path": config.environment.path})
    start = named[config.trained_role]
    return {
        role: tuple(path for path in named.get(role, start) if Path(path.path).exists())
        for role in config.groups
    }


def _scripts(named: Mapping[str, str]) -> list[NodePath]:
    """The files among import paths, by the keys that name these."""
    files = {key: path.rpartition(":")[0] for key, path in named.items()}
    return [NodePath(key=key, path=file) for key, file in files.items() if file.endswith(".py")]


def _paths(role: str, model: ModelSource) -> list[NodePath]:
    named = {"path": model.path, "tokenizer": model.tokenizer}
    return [NodePath(key=f"{role}.model.{name}", path=path) for name, path in named.items() if path]
