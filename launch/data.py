"""The command `rlhf-ray data JOB CONFIG`: a job's rows as it will see them; nothing starts.

For example `rlhf-ray data sft configs/sft/stories-cpu.yaml --rows 5`.
"""

from __future__ import annotations

import logging
import os
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from launch import cli
from rlhf_ray.config.tools.layers import value_at
from rlhf_ray.config.tools.stages import Stage, to_come


def main(arguments: Sequence[str]) -> int:
    """Print what the job's data are; returns 0.

    Raises:
        ConfigError: What the job would say of its configuration or data.
    """
    options, overrides = parser().parse_known_args(arguments)
    stages = cli.read_stages(options.job, options.config, overrides)

    from launch.tables.rows import print_absent, print_look
    from rlhf_ray.jobs.rows import tokenizer_of
    from rlhf_ray.jobs.table import JOBS

    explained: set[str] = set()
    with _quiet_reports():
        for number, stage in enumerate(stages):
            job, config = JOBS[stage.job], stage.rooted
            prefix = f"{stage.name}: " if stage.name else ""
            unwritten = _unwritten(stage, stages[:number])
            for key, path in unwritten.items():
                print_absent(f"{prefix}{key}", f"an earlier stage will write it: {path}")
            rows = job.rows(config, tokenizer_of(config.learner.model))
            for key in [key for key in rows.named if key not in unwritten]:
                marked = "" if job.marked in explained else job.marked
                print_look(rows.look(key, num_rows=options.rows), prefix, marked=marked)
                explained.add(job.marked)
    return 0


@contextmanager
def _quiet_reports() -> Iterator[None]:
    """Without the log's lines about rows: what they say is shown."""
    logger = logging.getLogger("rlhf_ray.data.rows.report")
    logger.disabled, before = True, logger.disabled
    try:
        yield
    finally:
        logger.disabled = before


def parser() -> ArgumentParser:
    """What the command line takes, beside the configuration's own keys."""
    parser = ArgumentParser(
        prog="rlhf-ray data",
        description="How a job's rows are recognised, counted and tokenized. Nothing starts; of "
        "models the tokenizer and config.json alone are read.",
        epilog="Any key of the configuration can be given as well: --data.limit 1000",
        allow_abbrev=False,
    )
    parser.add_argument("job", choices=cli.CONFIGURED)
    parser.add_argument("config", help="its configuration: a YAML file, or a ready one by its name")
    parser.add_argument(
        "--rows", type=_count, default=3, metavar="N", help="shown of each data set (default: 3)"
    )
    return parser


def _unwritten(stage: Stage, earlier: Sequence[Stage]) -> dict[str, str]:
    """Data sets in the folders of earlier stages that are not there."""
    values = stage.config.model_dump()
    keys = [tuple(key.split(".")) for key in stage.config.data_sets]
    found: dict[str, str] = {}
    for path in sorted(to_come(stage.config, earlier)):
        length = next((len(key) for key in keys if path[: len(key)] == key), 0)
        file = str(value_at(values, path))
        if length and not os.path.exists(file):
            found[".".join(path[:length])] = file
    return found


def _count(text: str) -> int:
    if not text.isdigit():
        raise ArgumentTypeError(f"must be a number of rows, got {text!r}")
    return int(text)
