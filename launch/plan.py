"""The command `rlhf-ray plan JOB CONFIG`: what a job needs, and whether it fits; nothing starts.

For example `rlhf-ray plan grpo configs/grpo/llama3-8b-8gpu.yaml --gpu-memory 80`.
"""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Mapping, Sequence

from launch import cli
from rlhf_ray.config.placement import GroupConfig
from rlhf_ray.config.tools.stages import Stage, groups_of
from rlhf_ray.errors import EXIT_CONFIG, ConfigError
from rlhf_ray.memory import GIB
from rlhf_ray.models.shape import read_shapes
from rlhf_ray.planning.advice import advise, advise_placement
from rlhf_ray.planning.layout import Cluster, shown_bytes, smallest_cluster
from rlhf_ray.planning.plan import Plan, plan_jobs
from rlhf_ray.planning.roles import Shapes, model_paths

GPUS_OF_A_NODE = 8


def main(arguments: Sequence[str]) -> int:
    """Print the plan; returns 0 where the job fits, 2 where it does not.

    Raises:
        ConfigError: The configuration or a model's cannot be read, or ranks have no place.
    """
    options, overrides = parser().parse_known_args(arguments)
    jobs = cli.read_stages(options.job, options.config, overrides)
    shapes = read_shapes(_paths(jobs), options.model_config)
    plan = _plan(jobs, shapes, _cluster(options, groups_of(jobs)))

    from launch.tables.plan import print_plan

    print_plan(plan, [] if plan.fits else advise(jobs, shapes, plan))
    return 0 if plan.fits else EXIT_CONFIG


def _paths(jobs: Sequence[Stage]) -> dict[str, str]:
    """Every model, by the key that names it."""
    return {
        f"stages.{job.name}.{key}" if job.name else key: path
        for job in jobs
        for key, path in model_paths(job.rooted).items()
    }


def _plan(jobs: Sequence[Stage], shapes: Shapes, cluster: Cluster) -> Plan:
    """The plan.

    Raises:
        ConfigError: Ranks have no place; says what would make room.
    """
    try:
        return plan_jobs(jobs, shapes, cluster)
    except ConfigError as error:
        ways = advise_placement(jobs, shapes, cluster)
        if not ways:
            raise

        from launch.tables.format import option, outcome

        enough = f"{option(ways[0].change)}   ({outcome(ways[0].plan)})"
        raise ConfigError(f"{error}\nEnough would be: {enough}") from error


def parser() -> ArgumentParser:
    """What the command line takes, beside the configuration's own keys."""
    parser = ArgumentParser(
        prog="rlhf-ray plan",
        description="What a job or pipeline needs and where it goes, from its configuration.",
        epilog="Any key of the configuration can be given as well: --policy.zero.stage 3",
        allow_abbrev=False,
    )
    parser.add_argument("job", choices=cli.CONFIGURED)
    parser.add_argument("config", help="its configuration: a YAML file, or a ready one by its name")
    parser.add_argument("--nodes", type=_count, metavar="N", help="default: as few as hold the job")
    parser.add_argument(
        "--gpus-per-node",
        type=_count,
        metavar="M",
        help=f"default: {GPUS_OF_A_NODE}, or none where the job asks for none",
    )
    parser.add_argument(
        "--gpu-memory",
        type=_gigabytes,
        default=80.0,
        metavar="GB",
        help="of one GPU: as it is sold, such as 24 or 80 (default), of which CUDA shows less, or "
        "what it shows",
    )
    parser.add_argument(
        "--node-memory",
        type=_gigabytes,
        default=0.0,
        metavar="GB",
        help="of one node beside its GPUs' (default: not checked)",
    )
    parser.add_argument(
        "--model-config",
        action="append",
        default=[],
        metavar="FILE",
        help="config.json of a model that is not on this disk; MODEL=FILE where there are several",
    )
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"must be an integer above 0, got {text!r}")
    return int(text)


def _gigabytes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def _cluster(options: Namespace, groups: Mapping[str, GroupConfig]) -> Cluster:
    """The cluster that is described; nodes that are not counted are as few as hold the job."""
    on_gpu = any(group.gpus_per_rank for group in groups.values())
    cluster = Cluster(
        nodes=options.nodes or 1,
        gpus_per_node=options.gpus_per_node or (GPUS_OF_A_NODE if on_gpu else 0),
        gpu_bytes=shown_bytes(options.gpu_memory),
        node_bytes=int(options.node_memory * GIB),
    )
    return cluster if options.nodes else smallest_cluster(groups, cluster)
