"""Rows as often as they are wanted: as indexing gives them, with gradients that repeat."""

import pytest
import torch

from rlhf_ray.models.packed import take_rows


@pytest.mark.parametrize("shape", [(7,), (3, 5)], ids=str)
@pytest.mark.parametrize("index_shape", [(40,), (8, 5), (0,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_it_is_indexing(shape, index_shape, dtype):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(6, *shape, generator=generator, dtype=torch.float64).to(dtype)
    index = torch.randint(6, index_shape, generator=generator)
    upstream = torch.randn(*index_shape, *shape, generator=generator, dtype=torch.float64).to(dtype)
    ours = states.clone().requires_grad_()
    exact = states.double().requires_grad_()
    taken = take_rows(ours, index)
    assert torch.equal(taken, states[index])
    taken.backward(upstream)
    exact[index].backward(upstream.double())
    expected = exact.grad.to(dtype)
    close = {"rtol": 2**-7, "atol": 0.0} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(ours.grad, expected, **close)


def test_copies_of_a_row_add_up_in_float32():
    """Hundreds of small ones beside a large one, each of which bfloat16 alone would lose."""
    states = torch.zeros(1, 2, dtype=torch.bfloat16, requires_grad=True)
    upstream = torch.full((513, 2), 2**-4, dtype=torch.bfloat16)
    upstream[0] = 32.0
    take_rows(states, torch.zeros(513, dtype=torch.int64)).backward(upstream)
    assert states.grad.tolist() == [[64.0, 64.0]]


def test_states_need_not_lie_end_to_end():
    heads_first = torch.randn(2, 9, 4)
    index = torch.tensor([[3, 3], [0, 8]])
    assert torch.equal(
        take_rows(heads_first.transpose(0, 1), index), heads_first.transpose(0, 1)[index]
    )


def test_gradients_repeat_whatever_the_number_of_threads():
    num_threads = torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(1500, (4096,), generator=generator)
    upstream = torch.randn(4096, 8, 16, generator=generator)
    found = []
    try:
        for threads in (1, 2, 4, 4, 4):
            torch.set_num_threads(threads)
            states = torch.zeros(1500, 8, 16, requires_grad=True)
            take_rows(states, index).backward(upstream)
            found.append(states.grad)
    finally:
        torch.set_num_threads(num_threads)
    assert all(torch.equal(found[0], other) for other in found)
