"""Models that leave the ranks in the transformers layout."""

from __future__ import annotations

from typing import Any, Protocol

from actors.cluster.role_handle import RoleHandle
from actors.cluster.run_files import RunFiles


class ExportingActor(Protocol):
    """What an export asks of ranks; rank 0 writes."""

    def export(self, folder: str, tokenizer_path: str) -> None:
        """Write the model."""
        ...

    def describe(self, folder: str, tokenizer_path: str) -> None:
        """Write configuration and tokenizer without the weights."""
        ...


async def export(
    ranks: RoleHandle[Any],
    files: RunFiles,
    folder: str,
    tokenizer_path: str,
    *,
    weights: bool = True,
    timeout_s: float,
) -> None:
    """Have a role's ranks write their model; it comes to the driver's machine as well.

    Args:
        ranks: Whose model.
        files: How what they write comes to the driver.
        folder: Where to write it.
        tokenizer_path: Where the run's tokenizer is, which goes beside it.
        weights: Whether they are written, or configuration and tokenizer alone.
        timeout_s: Deadline of the writing.
    """
    await files.send(tokenizer_path)
    write = ExportingActor.export if weights else ExportingActor.describe
    await ranks.call(write, timeout_s=timeout_s)(folder, tokenizer_path)
    await files.fetch_export(folder)
