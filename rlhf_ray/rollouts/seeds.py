"""Seeds of samples: a function of the run, the draw, the prompt and the sample alone.

So a resumed run samples what the undisturbed one would have, on any number of replicas.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def sample_seeds(
    *, seed: int, draw: int | str, prompt_id: str, num_samples: int
) -> tuple[int, ...]:
    """One seed a sample, below 2^31.

    Args:
        seed: Of the run.
        draw: Tells one use of a prompt from another: its position in the order of the data. What is
            no part of training says so in words before it.
        prompt_id: Of the prompt.
        num_samples: G.
    """
    return tuple(
        _below_2_31(f"{seed}/{draw}/{prompt_id}/{sample}") for sample in range(num_samples)
    )


def turn_seed(seed: int, turn: int) -> int:
    """The seed of a sample's later turns, below 2^31; that of the first, turn 0, is the sample's.

    A request draws by its seed and the position among its own tokens, and each turn is a request.
    """
    return seed if not turn else _below_2_31(f"turn/{seed}/{turn}")


def environment_seed(seeds_G: Sequence[int]) -> int:
    """Of the environments of a draw, whose samples begin in the same world."""
    return _below_2_31(f"environment/{seeds_G[0]}")


def _below_2_31(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest()) >> 1
