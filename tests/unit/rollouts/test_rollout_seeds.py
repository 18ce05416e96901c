"""Seeds of samples depend on run, draw, prompt and sample, and on nothing else."""

from __future__ import annotations

from rlhf_ray.rollouts.seeds import sample_seeds


def test_seeds_are_fixed():
    """Another value here breaks the resuming of runs that were started before."""
    seeds = sample_seeds(seed=0, draw=1, prompt_id="train:0", num_samples=3)
    assert seeds == (1299580807, 1502713044, 222856923)
    assert sample_seeds(seed=0, draw=1, prompt_id="train:0", num_samples=1) == seeds[:1]


def test_everything_that_tells_samples_apart_changes_them():
    seeds = [
        seed
        for run in (0, 1)
        for draw in (1, 2, "eval")
        for prompt_id in ("a", "b", "a/1")
        for seed in sample_seeds(seed=run, draw=draw, prompt_id=prompt_id, num_samples=4)
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)
