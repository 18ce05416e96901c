"""Where tables go."""

from __future__ import annotations

import os

from rich.console import Console

# Of a file or pipe: names and paths stay whole, to be searched and copied.
WIDTH_ELSEWHERE = 240


def screen() -> Console:
    """Standard output, as wide as its terminal."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDTH_ELSEWHERE
    return console
