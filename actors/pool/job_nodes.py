"""The nodes that a job's roles are on: compared with this machine before anything is loaded."""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from actors.cluster import file_tasks
from actors.cluster.deadline import within
from actors.cluster.file_tasks import NodeReport, code_of_package, start_on
from actors.cluster.run_files import RunFiles
from actors.pool.pool import Pool
from rlhf_ray.config.checks.preflight import NodePath, node_paths
from rlhf_ray.config.run import STATUS_FILE, JobConfig
from rlhf_ray.errors import ConfigError, RlhfRayError

logger = logging.getLogger(__name__)

# A job that ends, or is stopped, does not wait for a slow node longer than this.
LAST_FETCH_S = 20.0


@dataclass(frozen=True, kw_only=True)
class _Need:
    """A path that a role reads on a node."""

    role: str
    node_id: str
    address: str
    path: NodePath

    @property
    def is_result(self) -> bool:
        """Whether a run on this machine wrote it: its export, or that of a checkpoint."""
        above = Path(self.path.path).parents
        return any((folder / STATUS_FILE).is_file() for folder in (above[0], *above[2:3]))


@asynccontextmanager
async def skipped_steps_fetched(config: JobConfig, pool: Pool) -> AsyncIterator[None]:
    """However the job ends, bring here what its skipped steps left on nodes."""
    try:
        yield
    finally:
        files = replace(pool.files, timeout_s=LAST_FETCH_S)
        try:
            await files.fetch(str(Path(config.run_dir) / "skipped"))
        except RlhfRayError as error:
            logger.warning("%s", error)


async def check_nodes(config: JobConfig, pool: Pool) -> None:
    """Place a job's roles, compare their nodes with this machine, and send results that they lack.

    Raises:
        ConfigError: The cluster is too small, a node lacks a path, or has other code.
    """
    pool.place(config.groups)
    if not (config.ray.address or config.ray.pool):
        return  # a cluster of one's own is this machine
    needs = [
        _Need(role=role, node_id=place.node_id, address=place.address, path=path)
        for role, paths in node_paths(config).items()
        for place in pool.state.places_of(role)
        for path in paths
    ]
    address_of = {
        place.node_id: place.address
        for role in config.groups
        for place in pool.state.places_of(role)
    }
    reports = await _reports(config, address_of, sorted({need.path.path for need in needs}))
    faults = [*_other_code(reports, address_of), *_missing(needs, reports)]
    if faults:
        raise ConfigError("not every node is as the job needs it:\n" + "\n".join(faults))
    pool.files = RunFiles(
        distant={
            node: address_of[node] for node, report in reports.items() if not report.sees_token
        },
        ranks=tuple(address_of),
        timeout_s=config.timeouts.call_s,
    )
    if pool.files.distant:
        logger.info(
            "%s do not see this machine's %s: what their ranks write is brought here",
            ", ".join(pool.files.distant.values()),
            config.run_dir,
        )
    await _send_results(needs, reports, pool.files)


async def _reports(
    config: JobConfig, address_of: Mapping[str, str], paths: Sequence[str]
) -> dict[str, NodeReport]:
    """What each node says, by its id."""
    token = Path(config.run_dir, f".{uuid.uuid4().hex}")
    token.parent.mkdir(parents=True, exist_ok=True)
    token.touch()
    try:
        answers = await within(
            [start_on(node, file_tasks.report, str(token), paths) for node in address_of],
            timeout_s=config.timeouts.place_s,
            actors=[f"node {address}" for address in address_of.values()],
            operation="checking nodes",
        )
    finally:
        token.unlink()
    return dict(zip(address_of, answers, strict=True))


def _other_code(reports: Mapping[str, NodeReport], address_of: Mapping[str, str]) -> Iterator[str]:
    ours = code_of_package()
    for node, report in reports.items():
        if report.code != ours:
            yield (
                f"  {address_of[node]} has another rlhf-ray than this machine "
                f"(code {report.code}, here {ours}): install the same one"
            )


def _missing(needs: Sequence[_Need], reports: Mapping[str, NodeReport]) -> list[str]:
    """A line for each path that a role does not find on one of its nodes."""
    lines = [
        f"  {need.role} on {need.address}: {need.path.key} names {need.path.path!r}, "
        "which is not there"
        for need in needs
        if need.path.path in reports[need.node_id].missing and not need.is_result
    ]
    return list(dict.fromkeys(lines))


async def _send_results(
    needs: Sequence[_Need], reports: Mapping[str, NodeReport], files: RunFiles
) -> None:
    """What a run wrote here goes to the nodes that lack it."""
    takers: dict[str, dict[str, str]] = {}
    for need in needs:
        lacks = need.path.path in reports[need.node_id].missing or need.node_id in files.distant
        if lacks and need.is_result:
            takers.setdefault(need.path.path, {})[need.node_id] = need.address
    for path, nodes in takers.items():
        sender = RunFiles(distant=nodes, ranks=tuple(nodes), timeout_s=files.timeout_s)
        await sender.send(path)
