"""Seeds of samples: a function of the run, the draw, the prompt and the sample alone.

So a resumed run samples what the undisturbed one would have, on any number of replicas.
"""

from __future__ import annotations

import hashlib


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
        int.from_bytes(
            hashlib.blake2b(f"{seed}/{draw}/{prompt_id}/{sample}".encode(), digest_size=4).digest()
        )
        >> 1
        for sample in range(num_samples)
    )
