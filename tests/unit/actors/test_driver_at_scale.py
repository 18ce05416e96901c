"""What the driver sends for a group does not depend on how many GPUs there are."""

from benchmarks.scale.__main__ import cost_of_a_group


def test_a_group_is_as_cheap_to_send_on_many_gpus_as_on_few():
    """What all ranks need is pickled once. Larger numbers of rows take a byte more."""
    few, many = (cost_of_a_group(num_gpus, steps=3).num_bytes for num_gpus in (8, 64))
    assert 1_000 < many < 1.2 * few
