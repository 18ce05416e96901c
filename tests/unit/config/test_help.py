"""Help names every key of every job, with words for what is allowed."""

import pytest

from launch.cli import JOB_CONFIGS
from rlhf_ray.config.tools import schema
from rlhf_ray.config.tools.schema import help_text


@pytest.mark.parametrize("job", JOB_CONFIGS)
def test_help_names_every_key(job):
    text = help_text(JOB_CONFIGS[job], width=100)
    for path in schema.all_paths(JOB_CONFIGS[job]):
        if not schema.is_section(schema.at_path(JOB_CONFIGS[job], path)):
            assert f"--{'.'.join(path)} " in text


def test_help_shows_bounds_defaults_and_meaning():
    text = " ".join(help_text(JOB_CONFIGS["ppo"], width=200).split())
    assert "--algorithm.advantage one of 'gae'" in text
    assert "(default gae)" in text
    assert "--policy.optim.lr a number above 0 (default 1e-06)" in text
    assert "--seed an integer of at least 0 (default 0) Of data order" in text
    assert "--reward.functions.0.path text (required)" in text
