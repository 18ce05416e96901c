"""Activations and logits of one pass, from the tensors that transformers' layers save."""

from __future__ import annotations

from collections.abc import Callable

from rlhf_ray.planning.heap import RETURNED_BLOCK_BYTES, heap_factor
from rlhf_ray.planning.model_shape import ModelShape
from rlhf_ray.planning.work import ModelWork, Pass

# Bytes of a pass's tensor by its width, and by bytes a number where those are not the model's own.
Held = Callable[..., float]
# float32 logits: scaled by the temperature, and normalized; in training, for the entropy or in the
# backward pass, two more.
READING_COPIES, TRAINING_COPIES = 2, 4


def largest_pass(work: ModelWork) -> Pass:
    """The one that needs most."""
    return max(work.passes, key=lambda one: activation_bytes(work, one) + logits_bytes(work, one))


def logits_bytes(work: ModelWork, one: Pass) -> int:
    """Of one chunk, with what becomes of it."""
    num = one.logits_tokens * work.shape.vocabulary
    each = 4 * (TRAINING_COPIES if one.backward else READING_COPIES)
    if work.bytes_each == 2:  # the product itself, and in training its gradient, in bfloat16
        each += 4 if one.backward else 2
    return int(num * each * heap_factor(4 * num, on_gpu=work.on_gpu, trains=one.backward))


def returned_bytes(work: ModelWork, one: Pass) -> int:
    """What is free again after a pass: on the CPU the heap keeps the room of small tensors."""
    if work.on_gpu:
        return logits_bytes(work, one) + activation_bytes(work, one)
    is_large = 4 * one.logits_tokens * work.shape.vocabulary >= RETURNED_BLOCK_BYTES
    return logits_bytes(work, one) if is_large else 0


def activation_bytes(work: ModelWork, one: Pass) -> int:
    """What a pass through all layers keeps for the backward pass, or uses at a time without one."""
    shape = work.shape

    def held(width: int, bytes_each: int = work.bytes_each) -> float:
        block = one.tokens * width * bytes_each
        return block * heap_factor(block, on_gpu=work.on_gpu, trains=one.backward)

    # A layer computes where the one before did. Not so on the CPU under ZeRO-3, whose notes on each
    # layer stay in the heap behind that layer's tensors, so that the next one's need room of their
    # own.
    apart = work.zero.stage == 3 and not work.on_gpu
    room = _room(work, held)
    rooms = (len(shape.layers) if apart else 1) * room
    if not one.backward:
        return int(rooms + 4 * held(shape.hidden))
    layer = _layer(work, held)
    if not work.model.gradient_checkpointing:
        kept = len(shape.layers) * layer
    else:  # one layer is whole while it is computed again, in the room of its first computation
        kept = len(shape.layers) * held(shape.hidden) + layer + rooms - room
    # The last norm and the head's input remain.
    return int(kept + 4 * held(shape.hidden))


def _layer(work: ModelWork, held: Held) -> float:
    """What one layer saves for its backward pass."""
    shape = work.shape
    query, key = _attention_widths(shape)
    # A norm keeps its input in float32, that scaled, and its result, which the products take.
    norm = held(shape.hidden, 4) + 2 * held(shape.hidden)
    # Queries, keys and values as attention takes them; its result, before and after packing.
    attention = (3 if work.in_rectangles else 2) * held(query) + 2 * held(key)
    # A gated product keeps both factors, the one before its activation, and the result; without a
    # gate most families spell out GELU's formula, which keeps five.
    inner = (4 if shape.is_gated else 5) * held(shape.ffn)
    return 2 * norm + attention + inner


def _room(work: ModelWork, held: Held) -> float:
    """The most that is alive in a layer of which nothing is saved: in attention, or in the MLP."""
    query, key = _attention_widths(work.shape)
    # Queries, keys and values as projected; the first two turned by position; the result. Laid into
    # a rectangle, all of them once more.
    attention = 3 * held(query) + 3 * held(key)
    if work.in_rectangles:
        attention += 2 * held(query) + 2 * held(key)
    return max(attention, 3 * held(work.shape.ffn))


def _attention_widths(shape: ModelShape) -> tuple[int, int]:
    """Of queries, and of keys or values."""
    return shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
