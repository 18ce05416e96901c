"""Row formats with preferences: pairs in all their forms, rankings, and trees of replies."""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from rlhf_ray.data import fields
from rlhf_ray.data.conversations import read_prompt_column, split, with_system
from rlhf_ray.data.errors import RowError, UnusableRow, short
from rlhf_ray.data.files import Row
from rlhf_ray.data.messages import Messages, Text
from rlhf_ray.data.nearest import listed
from rlhf_ray.data.plain_formats import aligned, alpaca_prompt
from rlhf_ray.data.samples import Sample, as_chat
from rlhf_ray.data.transcripts import turns_of

_SIDES = ("chosen", "rejected")
# What the scores of both sides are called, if the row has them.
_SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"))
_ASSISTANT = "\n\nAssistant:"
# What opens an answer in a text that holds a conversation: HH's, Alpaca's, templates' own marks.
_OPENING = re.compile(
    r"(?:^|\n)(?:### *)?(?:Assistant|ASSISTANT|Response|AI|Bot) *:"
    r"|<\|im_start\|>assistant\n|<\|assistant\|>\n?|\[/INST\]|<start_of_turn>model\n"
    r"|<\|start_header_id\|>assistant<\|end_header_id\|>\n\n|<\|Assistant\|>|<｜Assistant｜>"
)
_ANSWERING = ("assistant", "gpt", "model")
# What an answer that is an object may call its text, its rank and its score.
_OWN_KEYS = {
    "answers": ("answer", "response", "text"),
    "ranks": ("rank",),
    "scores": ("score", "overall_score", "pm_score"),
}
_TREE_ROLES = {"prompter": "user", "assistant": "assistant"}


def read_preference(row: Row) -> Iterator[Sample]:
    """`prompt`, `chosen` and `rejected`, each text or messages.

    Answers that are whole conversations have the prompt in them as well.
    """
    chosen, rejected = _sides(row)
    if _is_conversation(chosen) and _is_conversation(rejected):
        shared, better, worse = _without_shared(row, chosen, rejected)
        prompt, later = split(row, as_chat(fields.text(row, "prompt"), "user"), shared)
        yield _pair(row, with_system(row, prompt + later), better, worse)
    else:
        yield _pair(row, read_prompt_column(row), chosen, rejected)


def begins_a_conversation(value: Any) -> bool:
    """Whether a value is a conversation from its beginning, or a text with turns of an assistant.

    An answer alone is neither: what two answers begin with alike is not what was asked.
    """
    if isinstance(value, str):
        return _OPENING.search(value) is not None
    first = value[0] if isinstance(value, list) and value else None
    speaker = first.get("role", first.get("from")) if isinstance(first, dict) else "assistant"
    return speaker not in _ANSWERING


def read_implicit_prompt(row: Row) -> Iterator[Sample]:
    """`chosen` and `rejected` as whole conversations; what they share is the prompt.

    Texts must have turns: the prompt ends where the last of the assistant's begins that both have.
    """
    shared, better, worse = _without_shared(row, *_sides(row))
    yield _pair(row, shared if isinstance(shared, str) else with_system(row, shared), better, worse)


def read_common_beginning(row: Row) -> Iterator[Sample]:
    """`chosen` and `rejected` as texts; the words that both begin with are the prompt."""
    chosen, rejected = fields.string(row, "chosen"), fields.string(row, "rejected")
    num_shared = _num_shared_characters(chosen, rejected)
    if not num_shared:
        raise RowError(row.where, "no common prompt", "'chosen' and 'rejected' begin differently")
    yield _pair(row, chosen[:num_shared], chosen[num_shared:], rejected[num_shared:])


def read_hh(row: Row) -> Iterator[Sample]:
    """`chosen` and `rejected` as transcripts of Human and Assistant, taken as they stand.

    The prompt ends where the last of the assistant's turns begins that both have begun alike.
    """
    chosen, rejected = fields.string(row, "chosen"), fields.string(row, "rejected")
    for transcript in (chosen, rejected):
        turns_of(row, transcript)  # to be sure that it is one
    shared = chosen[: _num_alike(chosen, rejected)]
    border = shared.rfind(_ASSISTANT) + len(_ASSISTANT)
    if border < len(_ASSISTANT):
        raise RowError(row.where, "no common prompt", "no turn of both begins alike")
    yield _pair(row, chosen[:border], chosen[border:], rejected[border:])


def read_hh_chat(row: Row) -> Iterator[Sample]:
    """The same transcripts as chats, for a chat template."""
    chosen = turns_of(row, fields.string(row, "chosen"))
    rejected = turns_of(row, fields.string(row, "rejected"))
    num_shared = _num_shared_messages(chosen, rejected)
    if not num_shared:
        raise RowError(row.where, "no common prompt", "no turn of both begins alike")
    yield _pair(row, chosen[:num_shared], chosen[num_shared:], rejected[num_shared:])


def read_sharegpt_pairs(row: Row) -> Iterator[Sample]:
    """`conversations` as the prompt, `chosen` and `rejected` as one message each."""
    chosen, rejected = _sides(row)
    prompt = with_system(row, fields.messages(row, "conversations"))
    yield _pair(row, prompt, chosen, rejected)


def read_alpaca_pairs(row: Row) -> Iterator[Sample]:
    """Alpaca's instruction with `chosen` and `rejected`."""
    chosen, rejected = _sides(row)
    yield _pair(row, alpaca_prompt(row), chosen, rejected)


def read_alpaca_outputs(row: Row) -> Iterator[Sample]:
    """Alpaca's instruction with `output: [chosen, rejected]` (LLaMA-Factory's)."""
    sides = fields.texts(row, "output")
    if len(sides) != 2:
        raise RowError(row.where, "wrong type", f"'output' must hold 2 answers, got {len(sides)}")
    yield _pair(row, alpaca_prompt(row), *sides)


def read_ranking(row: Row) -> Iterator[Sample]:
    """`prompt` and `answers`, the best first, or with `ranks` (the lowest is best) or `scores`.

    Answers may be objects that have their own (`{"answer": "4", "rank": 1}`).
    """
    if row.columns.get("answers") == []:
        raise UnusableRow(row.where, "no answers")
    row = _with_own_levels(row)
    answers = fields.texts(row, "answers")
    levels: list[float] = []
    if row.columns.get("scores") is not None:
        levels = fields.numbers(row, "scores")
    elif row.columns.get("ranks") is not None:
        levels = [-rank for rank in fields.numbers(row, "ranks")]
    if levels and len(levels) != len(answers):
        wanted = f"{len(answers)} answers need as many ranks or scores, got {len(levels)}"
        raise RowError(row.where, "wrong number of ranks", wanted)
    order = sorted(range(len(levels)), key=lambda index: -levels[index]) or range(len(answers))
    kept = [aligned(row, read_prompt_column(row), answers[index]) for index in order]
    yield Sample(
        sample_id=row.row_id,
        where=row.where,
        prompt=kept[0][0],
        answers_K=tuple(answer for _, answer in kept),
        levels_K=tuple(sorted(levels, reverse=True)),
    )


def read_oasst_tree(row: Row) -> Iterator[Sample | RowError]:
    """A tree of replies (OpenAssistant): siblings with a `rank` (0 is best) are one ranking.

    The prompt is the path to them; what the human might have gone on with is not ranked.
    """
    root = fields.column(row, "prompt")
    pending: list[tuple[Any, Messages]] = [(root, [])]
    num_siblings = 0
    while pending:
        node, path = pending.pop()
        path = [*path, _tree_message(row, node)]
        replies = node.get("replies") or []
        if not isinstance(replies, list):
            raise RowError(row.where, "wrong type", "'replies' must be a list")
        pending += [(reply, path) for reply in reversed(replies)]
        if path[-1]["role"] != "user" or len(replies) < 2:
            continue
        num_siblings += 1
        ranked = [reply for reply in replies if _tree_rank(row, reply) is not None]
        if len(ranked) < 2:
            yield UnusableRow(row.where, "unranked replies")
        else:
            ranked.sort(key=lambda reply: reply["rank"])
            yield Sample(
                sample_id=f"{row.row_id}/{num_siblings}",
                where=row.where,
                prompt=path,
                answers_K=tuple([_tree_message(row, reply)] for reply in ranked),
                levels_K=tuple(-float(reply["rank"]) for reply in ranked),
            )
    if not num_siblings:
        yield UnusableRow(row.where, "no ranked replies")


def read_oasst_message(row: Row) -> Iterator[Sample | RowError]:
    """A tree whose root is the row itself."""
    yield from read_oasst_tree(replace(row, columns={"prompt": row.columns}))


def _with_own_levels(row: Row) -> Row:
    """The row with ranks or scores beside its answers, where each answer has its own."""
    answers = fields.items(row, "answers")
    if not all(
        isinstance(answer, dict) and not {"role", "from"} & answer.keys() for answer in answers
    ):
        return row
    columns = dict(row.columns)
    for name, keys in _OWN_KEYS.items():
        key = next((key for key in keys if key in answers[0]), None)
        if key is not None:
            columns[name] = [answer.get(key) for answer in answers]
    if columns["answers"] is answers:
        known = " or ".join(_OWN_KEYS["answers"])
        wanted = f"an answer that is an object must have {known}, or role and content"
        raise RowError(row.where, "wrong type", f"{wanted}, got {listed(answers[0])}")
    if all(columns.get(name) is None for name in ("ranks", "scores")) and _has_number(answers[0]):
        known = ", ".join((*_OWN_KEYS["ranks"], *_OWN_KEYS["scores"]))
        detail = (
            f"each answer must have one of {known}, or the row ranks or scores for all of them; "
            f"each has {listed(answers[0])}"
        )
        raise RowError(row.where, "answers without a known rank or score", detail)
    return replace(row, columns=columns)


def _has_number(answer: dict[str, Any]) -> bool:
    """Whether an answer may be rated by what it has beside its text."""
    return any(isinstance(value, int | float) for value in answer.values())


def _without_shared(row: Row, chosen: Text, rejected: Text) -> tuple[Any, Any, Any]:
    """What two texts with turns or two conversations begin with alike, and how each goes on."""
    if isinstance(chosen, str) and isinstance(rejected, str):
        openings = _OPENING.finditer(chosen[: _num_alike(chosen, rejected)])
        num_shared = max((opening.end() for opening in openings), default=0)
    elif isinstance(chosen, list) and isinstance(rejected, list):
        num_shared = _num_shared_messages(chosen, rejected)
    else:
        raise RowError(row.where, "wrong type", "'chosen' and 'rejected' must be of one kind")
    if not num_shared:
        raise RowError(row.where, "no common prompt", "'chosen' and 'rejected' begin differently")
    return chosen[:num_shared], chosen[num_shared:], rejected[num_shared:]


def _pair(row: Row, prompt: Text, chosen: Text, rejected: Text) -> Sample:
    prompt_text, better = aligned(row, prompt, chosen)
    same_prompt, worse = aligned(row, prompt, rejected)
    if isinstance(prompt_text, str) != isinstance(same_prompt, str):  # one side is a chat
        prompt_text = as_chat(prompt_text, "user")
        better, worse = as_chat(better, "assistant"), as_chat(worse, "assistant")
        same_prompt = as_chat(same_prompt, "user")
    if prompt_text != same_prompt:
        raise RowError(row.where, "no common prompt", "'chosen' and 'rejected' begin differently")
    names: tuple[str, ...] = _SCORES[0]
    if all(row.columns.get(name) is None for name in names):
        given = [pair for pair in _SCORES if all(row.columns.get(n) is not None for n in pair)]
        names = given[0] if given else ()
    margin = fields.number(row, "margin") if row.columns.get("margin") is not None else None
    if margin is not None and margin < 0:
        detail = f"'margin' says by how much 'chosen' is better, got {margin:g}: swap the answers"
        raise RowError(row.where, "negative margin", detail)
    return Sample(
        sample_id=row.row_id,
        where=row.where,
        prompt=prompt_text,
        answers_K=(better, worse),
        levels_K=tuple(fields.number(row, name) for name in names),
        truncated_K=tuple(fields.optional_truth(row, f"truncated_{side}") for side in _SIDES),
        margin=margin,
    )


def _sides(row: Row) -> tuple[Text, Text]:
    chosen, rejected = fields.text(row, "chosen"), fields.text(row, "rejected")
    return chosen, rejected


def _is_conversation(answer: Text) -> bool:
    return isinstance(answer, list) and answer[0]["role"] != "assistant"


def _num_alike(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many elements are the same before the first that is not."""
    return sum(1 for _ in itertools.takewhile(bool, map(operator.eq, one, other)))


def _num_shared_messages(chosen: Messages, rejected: Messages) -> int:
    """Messages before the first that differs, those of the assistant at their end left out."""
    num_shared = min(_num_alike(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
    while num_shared and chosen[num_shared - 1]["role"] == "assistant":
        num_shared -= 1
    return num_shared


def _num_shared_characters(chosen: str, rejected: str) -> int:
    """Where the last word begins that both have begun alike, with the space before it."""
    if chosen == rejected:
        return len(chosen.rstrip().rpartition(" ")[0])
    shared = chosen[: _num_alike(chosen, rejected)]
    return max((match.start() for match in re.finditer(r"\s+", shared)), default=0)


def _tree_message(row: Row, node: Any) -> dict[str, str]:
    if not isinstance(node, dict) or str(node.get("role")) not in _TREE_ROLES:
        wanted = "a node of a tree must be an object with `role` prompter or assistant"
        raise RowError(row.where, "wrong type", wanted)
    content = fields.checked_text(row, "text", node.get("text"))
    return {"role": _TREE_ROLES[node["role"]], "content": content}


def _tree_rank(row: Row, node: Any) -> float | None:
    rank = node.get("rank") if isinstance(node, dict) else None
    if rank is None or (isinstance(rank, int) and not isinstance(rank, bool)):
        return rank
    wanted = f"'rank' must be a whole number, got {short(rank)}"
    raise RowError(row.where, "wrong type", wanted)
