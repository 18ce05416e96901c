"""Models that leave the ranks in the transformers layout."""

from __future__ import annotations

from actors.cluster.actor_set import ActorSet
from actors.cluster.run_files import RunFiles


async def export(
    actors: ActorSet,
    files: RunFiles,
    folder: str,
    tokenizer_path: str,
    *,
    weights: bool = True,
    timeout_s: float,
) -> None:
    """Have a role's ranks write their model; it comes to the driver's machine as well.

    Args:
        actors: The ranks.
        files: How what they write comes to the driver.
        folder: Where to write it.
        tokenizer_path: Where the run's tokenizer is, which goes beside it.
        weights: Whether they are written, or configuration and tokenizer alone.
        timeout_s: Deadline of the writing.
    """
    await files.send(tokenizer_path)
    await actors.call(
        "export" if weights else "describe", folder, tokenizer_path, timeout_s=timeout_s
    )
    await files.fetch_export(folder)
