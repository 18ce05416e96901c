"""Chunked log-probabilities: the values and gradients of the plain formula, in bounded memory."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf_ray.algorithms.logprobs import token_logprobs
from rlhf_ray.algorithms.ratios import clamp_log_ratio, log_ratio
from rlhf_ray.algorithms.supervised_losses import SFT_LOSSES

T, D, V = 13, 8, 101


class RecordingHead(nn.Linear):
    """A head that remembers how many rows each call was given."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        torch.manual_seed(0)
        super().__init__(D, V, dtype=dtype)
        self.rows: list[int] = []

    def forward(self, hidden: Tensor) -> Tensor:
        self.rows.append(len(hidden))
        return super().forward(hidden)


def inputs(num_tokens: int = T, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = 2.0 * torch.randn(num_tokens, D, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, V, (num_tokens,), generator=generator)
    return hidden.to(dtype).requires_grad_(), targets


def plain(hidden: Tensor, head: nn.Module, targets: Tensor, temperature: float):
    logits = head(hidden)
    log_p = torch.log_softmax(logits / temperature, dim=-1)
    return log_p[torch.arange(len(targets)), targets], -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk_tokens", [1, 4, T, 100])
def test_equals_the_plain_formula(chunk_tokens: int, temperature: float) -> None:
    weights = torch.linspace(-1.0, 2.0, T, dtype=torch.float64)
    results = []
    for chunked in (True, False):
        hidden, targets = inputs()
        head = RecordingHead()
        if chunked:
            scores = token_logprobs(
                hidden,
                head,
                targets,
                temperature=temperature,
                chunk_tokens=chunk_tokens,
                with_entropy=True,
            )
            logprobs, entropy = scores.logprobs_T, scores.entropy_T
            assert entropy is not None
        else:
            logprobs, entropy = plain(hidden, head, targets, temperature)
        ((logprobs * weights).sum() + 0.3 * (entropy * weights).sum()).backward()
        results.append((logprobs, entropy, hidden.grad, head.weight.grad, head.bias.grad))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("chunk_tokens", [1, 4, 100])
def test_the_number_of_chunks_does_not_change_a_bit_of_the_values(chunk_tokens: int) -> None:
    hidden, targets = inputs(dtype=torch.float32)
    head = RecordingHead(torch.float32)

    # Row by row, as matrix kernels of different sizes may round differently.
    class RowwiseHead(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            return torch.cat([head(row[None]) for row in rows])

    one = token_logprobs(hidden, RowwiseHead(), targets, chunk_tokens=T).logprobs_T
    many = token_logprobs(hidden, RowwiseHead(), targets, chunk_tokens=chunk_tokens).logprobs_T
    assert torch.equal(one, many)


def out_of_top_k(logits: Tensor) -> Tensor:
    return logits < logits.topk(7, dim=-1).values[:, -1:]


def all_but_one(logits: Tensor) -> Tensor:
    return (torch.arange(V) != 5).expand(logits.shape)


def padding_of_the_vocabulary(logits: Tensor) -> Tensor:
    return (torch.arange(V) >= V - 9).expand(logits.shape)


@pytest.mark.parametrize("chunk_tokens", [4, 100])
@pytest.mark.parametrize("is_out", [out_of_top_k, all_but_one, padding_of_the_vocabulary])
def test_words_without_a_chance_count_nothing(
    is_out: Callable[[Tensor], Tensor], chunk_tokens: int
) -> None:
    """Values and gradients are those of a softmax over the words that are left."""
    weights = torch.linspace(-1.0, 2.0, T, dtype=torch.float64)
    results = []
    for masked in (True, False):
        hidden, _ = inputs()
        head = RecordingHead()
        out = is_out(head(hidden)).detach()
        targets = (~out).int().argmax(-1)
        if masked:
            scores = token_logprobs(
                hidden,
                lambda rows, head=head: head(rows).masked_fill(is_out(head(rows)), -torch.inf),
                targets,
                temperature=0.6,
                chunk_tokens=chunk_tokens,
                with_entropy=True,
            )
            logprobs, entropy = scores.logprobs_T, scores.entropy_T
            assert entropy is not None
        else:
            left = [row[~no] / 0.6 for row, no in zip(head(hidden), out, strict=True)]
            log_p = [torch.log_softmax(row, dim=-1) for row in left]
            logprobs = torch.stack([row[0] for row in log_p])  # argmax takes the first one left
            entropy = torch.stack([-(row.exp() * row).sum() for row in log_p])
        ((logprobs * weights).sum() + 0.3 * (entropy * weights).sum()).backward()
        results.append((logprobs, entropy, hidden.grad, head.weight.grad))
    for got, want in zip(*results, strict=True):
        assert torch.isfinite(got).all()
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


def test_a_token_without_a_chance_has_no_probability_and_spoils_no_gradient() -> None:
    hidden, _ = inputs()
    head = RecordingHead()
    targets = torch.full((T,), V - 1)
    scores = token_logprobs(
        hidden,
        lambda rows: head(rows).masked_fill(padding_of_the_vocabulary(head(rows)), -torch.inf),
        targets,
        with_entropy=True,
    )
    assert scores.logprobs_T.isneginf().all()
    assert scores.entropy_T is not None
    ratio = clamp_log_ratio(log_ratio(scores.logprobs_T, torch.full((T,), -2.0))).exp()
    (ratio.sum() + scores.entropy_T.sum()).backward()
    assert hidden.grad is not None and torch.isfinite(hidden.grad).all()
    weighted = SFT_LOSSES["dft"](scores.logprobs_T.detach())
    assert weighted.tolist() == [0.0] * T


def test_no_entropy_unless_asked() -> None:
    hidden, targets = inputs()
    scores = token_logprobs(hidden, RecordingHead(), targets)
    assert scores.entropy_T is None and scores.top_T is None


@pytest.mark.parametrize(("entropy_gradient", "num_again"), [(False, 0), (True, 12)])
def test_a_backward_pass_computes_no_entropy_again_that_has_no_gradient(
    monkeypatch: pytest.MonkeyPatch, entropy_gradient: bool, num_again: int
) -> None:
    """Of four chunks of 4 tokens three are computed again."""
    rows: list[int] = []
    vecdot = torch.linalg.vecdot
    monkeypatch.setattr(torch.linalg, "vecdot", lambda a, b: rows.append(len(a)) or vecdot(a, b))
    hidden, targets = inputs()
    asked = {"with_entropy": True, "entropy_gradient": entropy_gradient}
    scores = token_logprobs(hidden, RecordingHead(), targets, chunk_tokens=4, **asked)
    assert scores.entropy_T is not None and scores.entropy_T.min() > 0.0
    [gradient] = torch.autograd.grad(scores.logprobs_T.sum(), [hidden])
    assert sum(rows) == T + num_again
    again, _ = inputs()
    expected = plain(again, RecordingHead(), targets, 1.0)[0].sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, [again])[0])


@pytest.mark.parametrize("chunk_tokens", [1, 4, 100])
def test_the_likeliest_token_is_that_of_all_logits(chunk_tokens: int) -> None:
    hidden, targets = inputs()
    head = RecordingHead()
    scores = token_logprobs(hidden, head, targets, chunk_tokens=chunk_tokens, with_top=True)
    assert scores.top_T is not None and scores.entropy_T is None
    assert torch.equal(scores.top_T, head(hidden).argmax(-1))


def test_softmax_of_a_bfloat16_model_is_computed_in_float32() -> None:
    hidden, targets = inputs(dtype=torch.bfloat16)
    head = RecordingHead(torch.bfloat16)
    scores = token_logprobs(hidden, head, targets, chunk_tokens=4, with_entropy=True)
    logprobs, entropy = scores.logprobs_T, scores.entropy_T
    assert logprobs.dtype == torch.float32
    assert entropy is not None and entropy.dtype == torch.float32
    expected = torch.log_softmax(head(hidden).float(), dim=-1)[torch.arange(T), targets]
    torch.testing.assert_close(logprobs, expected, rtol=1e-6, atol=1e-6)
    logprobs.sum().backward()
    assert head.weight.grad is not None and head.weight.grad.dtype == torch.bfloat16


def test_no_tokens() -> None:
    hidden, targets = inputs(num_tokens=0)
    head = RecordingHead()
    scores = token_logprobs(hidden, head, targets, with_entropy=True)
    logprobs, entropy = scores.logprobs_T, scores.entropy_T
    assert logprobs.shape == (0,) and entropy is not None and entropy.shape == (0,)
    (logprobs.sum() + entropy.sum()).backward()
    assert head.weight.grad is not None and not head.weight.grad.any()
    assert head.rows == [0], "even without tokens the head runs"


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, Tensor):
                self.numel = max(self.numel, x.numel())
        return out


def test_no_tensor_is_larger_than_a_chunk_of_logits_forward_and_backward() -> None:
    num_tokens, chunk_tokens = 400, 16
    hidden, targets = inputs(num_tokens)
    head = RecordingHead()
    with LargestTensor() as largest:
        scores = token_logprobs(hidden, head, targets, chunk_tokens=chunk_tokens, with_entropy=True)
        logprobs, entropy = scores.logprobs_T, scores.entropy_T
        assert entropy is not None
        (logprobs.sum() + entropy.sum()).backward()
    assert max(head.rows) == chunk_tokens
    again = num_tokens - chunk_tokens
    assert sum(head.rows) == num_tokens + again, "the last chunk's are kept for the backward pass"
    assert largest.numel <= max(chunk_tokens * V, num_tokens * D, D * V)

    with LargestTensor() as largest:  # the instrument does see what it should find
        plain(hidden, head, targets, 1.0)[0].sum().backward()
    assert largest.numel == num_tokens * V


def test_no_graph_without_grad() -> None:
    hidden, targets = inputs()
    with torch.no_grad():
        logprobs = token_logprobs(hidden, RecordingHead(), targets, chunk_tokens=4).logprobs_T
    assert not logprobs.requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"chunk_tokens": 0}, "chunk_tokens must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, float], message: str) -> None:
    hidden, targets = inputs()
    with pytest.raises(ValueError, match=message):
        token_logprobs(hidden, RecordingHead(), targets, **arguments)
