"""What a column is called, in the file and here: names, paths, labels, and the line to write."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from loads import load_labelled, load_pairs, load_prompts, load_sft
from pydantic import ValidationError

from rlhf_ray.config.data import BetterConfig, DataConfig
from rlhf_ray.config.tools.schema import help_text
from rlhf_ray.data.examples.preferences import check_labels
from rlhf_ray.errors import DataError, RowError

VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "user", "content": "2 + 2?"}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "4"},
    "extra_info": {"split": "train", "index": 0},
}
SIDES = {"question": "q", "reply_0": "good", "reply_1": "bad", "winner": 0}
NAMES: dict[str, Any] = {
    "prompt": "question",
    "a": "reply_0",
    "b": "reply_1",
    "better": {"column": "winner", "a": 0, "b": 1, "tie": ["both", "neither"]},
}


def config(tmp_path: Path, *rows: dict[str, Any], **settings: Any) -> DataConfig:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig.model_validate({"path": str(path), **settings})


def refused(tmp_path: Path, tokenizer: Any, job: str, row: dict[str, Any], **settings: Any) -> str:
    """What is said of a row, without its place."""
    loaders: dict[str, Any] = {"pairs": load_pairs, "sft": load_sft, "labelled": load_labelled}
    data = config(tmp_path, row, **settings)
    with pytest.raises(DataError) as caught:
        if job == "prompts":
            load_prompts(data, tokenizer, context_tokens=999)
        else:
            loaders[job](data, tokenizer, max_length=999)
    message = str(caught.value)
    assert message.startswith(f"{data.path}:1: ")
    return message.removeprefix(f"{data.path}:1: ")


def test_a_path_names_what_stands_inside_of_a_column(tmp_path: Path, chat_tokenizer: Any) -> None:
    names = {"answer": "reward_model.ground_truth", "index": "extra_info.index"}
    data = config(tmp_path, VERL, columns=names)
    [prompt] = load_prompts(data, chat_tokenizer, context_tokens=99).rows
    assert prompt.text == VERL["prompt"]
    others = {name: value for name, value in VERL.items() if name != "prompt"}
    assert prompt.columns == {**others, "answer": "4", "index": 0}


def test_a_path_may_go_through_lists(tmp_path: Path, chat_tokenizer: Any) -> None:
    row = {"turns": [{"said": "q"}, {"said": "a"}], "best.of": "dotted"}
    names = {"prompt": "turns.0.said", "completion": "turns.-1.said", "tag": "best.of"}
    [example] = load_sft(config(tmp_path, row, columns=names), chat_tokenizer, max_length=9).rows
    assert chat_tokenizer.decode(example.token_ids_T) == "<s>qa</s>"
    for path in ("turns.2.said", "turns.-3.said", "turns.x", "turns.0.said.x", "turns.0.-"):
        message = refused(tmp_path, chat_tokenizer, "prompts", row, columns={"prompt": path})
        assert message.startswith(f"data.columns names {path!r} for 'prompt', and there is no such")


@pytest.mark.parametrize(
    ("row", "names", "said"),
    [
        ({"question": "q", "answer": "a"}, {"prompt": "quesiton"},
         "there are 'question', 'answer'; did you mean data.columns: {prompt: question}?"),
        ({"Question": "q", "n": 1}, {"prompt": "question"},
         "there are 'Question', 'n'; did you mean data.columns: {prompt: Question}?"),
        (VERL, {"answer": "reward_model.groundtruth"},
         "did you mean data.columns: {answer: reward_model.ground_truth}?"),
        (VERL, {"answer": "solution"},
         "did you mean data.columns: {answer: reward_model.ground_truth}?"),
        (SIDES, {**NAMES, "better": {"column": "winer", "a": 0, "b": 1}},
         "did you mean data.columns: {better: {column: winner, ...}}?"),
        ({"prompt": "q"}, {"zzz": "yyy"}, "there are 'prompt'"),
    ],
)  # fmt: skip
def test_a_name_that_no_row_has_is_refused_with_the_nearest(
    tmp_path: Path, chat_tokenizer: Any, row: dict[str, Any], names: dict[str, Any], said: str
) -> None:
    message = refused(tmp_path, chat_tokenizer, "prompts", row, columns=names)
    assert "and there is no such column" in message
    assert message.endswith(said)


@pytest.mark.parametrize(
    ("job", "row", "names", "said"),
    [
        # The name here comes first.
        ("sft", {"question": "q", "answer": "a"}, {"question": "prompt", "answer": "completion"},
         "did you mean data.columns: {prompt: question}?"),
        ("prompts", {"prompt": "q", "tags": ["a"]}, {"answer": "tags[0]"},
         "did you mean data.columns: {answer: tags.0}?"),
        # A misspelt name that a format needs.
        ("sft", {"question": "q", "answer": "a"}, {"promt": "question", "completion": "answer"},
         "set data.columns: {completion: answer, prompt: question}"),
        ("prompts", {"question": "q"}, {"Prompt": "question"},
         "set data.columns: {prompt: question}"),
        # One that rows may do without.
        ("sft", {"prompt": "q", "completion": "a", "sys": "s"}, {"sytem": "sys"},
         "calls 'sys' 'sytem', a name that nothing here reads; did you mean data.columns: "
         "{system: sys}?"),
        ("prompts", {"prompt": "q", "sys": "s"}, {"systen": "sys"},
         "did you mean data.columns: {system: sys}?"),
        ("pairs", {"prompt": "q", "chosen": "a", "rejected": "b", "gap": 1}, {"margn": "gap"},
         "did you mean data.columns: {margin: gap}?"),
        ("labelled", {"prompt": "q", "completion": "a", "label": 1, "cut": 0},
         {"truncatd": "cut"}, "did you mean data.columns: {truncated: cut}?"),
    ],
)  # fmt: skip
def test_misspelt_names_of_either_side_are_pointed_out(
    tmp_path: Path,
    chat_tokenizer: Any,
    job: str,
    row: dict[str, Any],
    names: dict[str, Any],
    said: str,
) -> None:
    assert refused(tmp_path, chat_tokenizer, job, row, columns=names).endswith(said)


def test_names_of_ones_own_are_for_reward_functions(tmp_path: Path, chat_tokenizer: Any) -> None:
    row = {"prompt": "q", "truth": "4", "n": 1}
    for names in ({"labels": "truth"}, {"solution": "truth", "scores": "n"}, {"tool": "truth"}):
        data = config(tmp_path, row, columns=names)
        [prompt] = load_prompts(data, chat_tokenizer, context_tokens=9).rows
        assert set(names) <= set(prompt.columns)


@pytest.mark.parametrize(
    ("job", "row", "names", "line"),
    [
        ("sft", {"question": "q", "answer": "a"}, {"prompt": "question"},
         "{prompt: question, completion: answer}"),
        ("pairs", {"q": {"text": "q"}, "win": "a", "lose": "b"}, {"prompt": "q.text"},
         "{prompt: q.text, chosen: win, rejected: lose}"),
        ("labelled", {"asked": "q", "said": "a", "ok": 1}, {"prompt": "asked", "label": "ok"},
         "{prompt: asked, label: ok, completion: ...}"),
    ],
)  # fmt: skip
def test_the_line_holds_what_the_configuration_names_already(
    tmp_path: Path,
    chat_tokenizer: Any,
    job: str,
    row: dict[str, Any],
    names: dict[str, Any],
    line: str,
) -> None:
    message = refused(tmp_path, chat_tokenizer, job, row, columns=names)
    assert message.endswith(f"data.columns: {line}")
    assert all(repr(name) in message for name in row)


@pytest.mark.parametrize("name", ["prompt_id", "question_id", "prompt_model", "input_tokens", "id"])
def test_what_tells_about_a_text_is_not_proposed_as_one(
    tmp_path: Path, chat_tokenizer: Any, name: str
) -> None:
    row = {name: "7", "chosen": "a", "rejected": "b"}
    assert f": {name}" not in refused(tmp_path, chat_tokenizer, "pairs", row)
    assert f": {name}" not in refused(tmp_path, chat_tokenizer, "prompts", row)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "q", "a": 5, "b": "y", "better": "a"}, "column 'a' must be a string or"),
        ({**SIDES, "reply_1": 7}, "column 'reply_1' must be a string or a list"),
        ({**SIDES, "reply_1": None}, "no column 'reply_1': nothing is in it here"),
        ({"prompt": "q", "response_0": "a", "response_1": ["x"], "better_response_id": 0},
         "message 0 of column 'response_1' must have `role`"),
        ({"info": {"post": "p"}, "summaries": [{"text": "a"}], "choice": 0},
         "no column 'summaries.1.text': columns there: "),
        ({"input": {"messages": [{"role": "user", "content": 4}]}, "preferred_output": "a",
          "non_preferred_output": "b"}, "message 0 of column 'input.messages' (user) must have"),
        ({"question": {"full_text": "q"}, "answer_0": "a", "answer_1": "b", "score_0": "high",
          "score_1": 0}, "column 'score_0' must be a finite number, got 'high'"),
        ({"conversation_a": "a", "conversation_b": [{"role": "user", "content": "q"}],
          "winner": "model_a"}, "'conversation_a' and 'conversation_b' must both be texts, or"),
    ],
)  # fmt: skip
def test_errors_name_columns_as_the_file_has_them(
    tmp_path: Path, chat_tokenizer: Any, row: dict[str, Any], said: str
) -> None:
    names = NAMES if "winner" in row and "question" in row else {}
    assert said in refused(tmp_path, chat_tokenizer, "pairs", row, columns=names)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"other": "q"}, "no column 'asked': columns there: 'other', 'said'; all rows of a source"),
        ({"asked": None}, "no column 'asked': nothing is in it here; data.on_bad_row: skip leaves"),
        ({"asked": 5}, "wrong type: column 'asked' must be a string or a list of chat messages"),
    ],
)
def test_a_later_row_that_differs_is_named_by_what_the_file_has(
    tmp_path: Path, chat_tokenizer: Any, row: dict[str, Any], said: str
) -> None:
    names = {"prompt": "asked", "completion": "said"}
    data = config(tmp_path, {"asked": "q", "said": "a"}, {**row, "said": "a"}, columns=names)
    with pytest.raises(RowError) as caught:
        load_sft(data, chat_tokenizer, max_length=99)
    assert str(caught.value).startswith(f"{data.path}:2: {said}")


def test_a_column_that_only_some_rows_have_may_be_named(
    tmp_path: Path, chat_tokenizer: Any
) -> None:
    rows = [{"q": "one"}, {"q": "two", "hint": "x"}, {"q": "three", "hint": None}]
    data = config(tmp_path, *rows, columns={"prompt": "q", "clue": "hint"})
    prompts = load_prompts(data, chat_tokenizer, context_tokens=9).rows
    assert [dict(prompt.columns) for prompt in prompts] == [{}, {"clue": "x"}, {"clue": None}]


@pytest.mark.parametrize(
    ("winner", "answers"),
    [
        (0, ["good", "bad"]), (1, ["bad", "good"]), ("0", ["good", "bad"]), (1.0, ["bad", "good"]),
        ("both", None), ("Neither", None),
    ],
)  # fmt: skip
def test_a_label_says_which_answer_is_better(
    tmp_path: Path, chat_tokenizer: Any, winner: Any, answers: list[str] | None
) -> None:
    data = config(tmp_path, SIDES, {**SIDES, "winner": winner}, columns=NAMES)
    loaded = load_pairs(data, chat_tokenizer, max_length=99)
    left = {name: reason.count for name, reason in loaded.report.left_out.items()}
    assert left == ({} if answers else {"tie": 1})
    if answers:
        said = [chat_tokenizer.decode(ids_T) for ids_T in loaded.rows[1].answer_ids_K]
        assert said == [f"{answer}</s>" for answer in answers]


def test_a_label_may_be_true_or_false(tmp_path: Path, chat_tokenizer: Any) -> None:
    names = {**NAMES, "better": {"column": "winner", "a": True, "b": False}}
    data = config(tmp_path, {**SIDES, "winner": False}, columns=names)
    [pair] = load_pairs(data, chat_tokenizer, max_length=99).rows
    assert chat_tokenizer.decode(pair.answer_ids_K[0]) == "bad</s>"


def test_two_scores_may_say_it_in_place_of_a_label(tmp_path: Path, chat_tokenizer: Any) -> None:
    row = {"question": "q", "x": "bad", "y": "good", "x_points": 1, "y_points": 2}
    names = {"prompt": "question", "a": "x", "b": "y", "score_a": "x_points", "score_b": "y_points"}
    [pair] = load_pairs(config(tmp_path, row, columns=names), chat_tokenizer, max_length=99).rows
    assert chat_tokenizer.decode(pair.answer_ids_K[0]) == "good</s>"


def test_a_label_that_says_neither_is_refused_with_those_that_do(
    tmp_path: Path, chat_tokenizer: Any
) -> None:
    data = config(tmp_path, SIDES, {**SIDES, "winner": 7}, columns=NAMES)
    message = (
        r"rows\.jsonl:2: unknown label: column 'winner' says 7; data\.columns\.better has a: 0; "
        r"b: 1; tie: both, neither"
    )
    with pytest.raises(RowError, match=message):
        load_pairs(data, chat_tokenizer, max_length=99)


@pytest.mark.parametrize(
    ("better", "message"),
    [
        ({"column": "x", "a": 1, "b": "1.0"}, "must have labels of their own, got '1.0' twice"),
        ({"column": "x", "a": "A", "b": "B", "tie": ["a"]}, "got 'a' twice"),
        ({"column": "x", "a": [], "b": 1}, "must each name something"),
        ({"column": [], "a": 0, "b": 1}, "must each name something"),
        ({"column": "x", "a": 0}, "b"),
        ({"column": "x", "a": 0, "b": 1, "c": 2}, "c"),
    ],
)
def test_labels_that_cannot_be_told_apart_are_refused(better: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig.model_validate({"path": "x", "columns": {"better": better}})


def test_only_better_has_labels() -> None:
    with pytest.raises(ValidationError, match=r"columns\.prompt must be a column's name"):
        DataConfig(path="x", columns={"prompt": BetterConfig(column="x", a=0, b=1)})
    assert "{column: winner, a: 0, b: 1" in " ".join(help_text(DataConfig, width=100).split())


@pytest.mark.parametrize(
    ("job", "row", "line"),
    [
        ("pairs", {"question": "q", "chosen": "The sky is blue", "rejected": "The sky is red"},
         "{prompt: question}"),
        ("pairs", {"system": "s", "question": "q", "chosen": "a", "rejected": "b"},
         "{prompt: question}"),
        ("pairs", {"input": "q", "chosen": [{"role": "assistant", "content": "a"}],
                   "rejected": [{"role": "assistant", "content": "b"}]}, "{prompt: input}"),
        ("pairs", {"asked": "why so?", "chosen": "a", "rejected": "b"}, "{prompt: asked}"),
        ("pairs", {"trajectory": [{"from": "user", "value": "q"}], "chosen": "a", "rejected": "b"},
         "{prompt: trajectory}"),
        ("pairs", {"question": "q", "response_j": "a", "response_k": "b"},
         "{prompt: question, chosen: response_j, rejected: response_k}"),
        ("pairs", {"query": "q", "chosen_response": "a", "rejected_response": "b"},
         "{prompt: query, chosen: chosen_response, rejected: rejected_response}"),
        ("pairs", {"prompt": "q", "chosne": "a", "rejectd": "b"},
         "{chosen: chosne, rejected: rejectd}"),
        ("pairs", {"question": "q", "answer_a": "a", "answer_b": "b", "verdict": "A"},
         "{prompt: question, a: answer_a, b: answer_b, better: {column: verdict, a: A, b: B}}"),
        ("pairs", {"question": "q", "reply_0": "a", "reply_1": "b", "preferred": 0},
         "{prompt: question, a: reply_0, b: reply_1, better: {column: preferred, a: 0, b: 1}}"),
        ("pairs", {"id": "7", "prompt": "q", "model_a": "x", "model_b": "y", "text_a": "a",
                   "text_b": "b", "winner": "tie (bothbad)"},
         "{a: text_a, b: text_b, better: {column: winner, a: model_a, b: model_b, "
         'tie: "tie (bothbad)"}}'),
        ("pairs", {"prompt": "q", "text_a": "a", "text_b": "b", "stars": "***"},
         "{a: text_a, b: text_b, better: {column: LABEL, a: ..., b: ...}}"),
        ("pairs", {"question": "q", "answer_0": "a", "answer_1": "b", "score_0": 1, "score_1": 0},
         "{prompt: question, a: answer_0, b: answer_1, score_a: score_0, score_b: score_1}"),
        ("pairs", {"input": [{"role": "user", "content": "q"}], "preferred_output": "a",
                   "non_preferred_output": "b"},
         "{prompt: input, chosen: preferred_output, rejected: non_preferred_output}"),
        ("pairs", {"conversation_a": [{"role": "user", "content": "q"}], "winner_model_a": 1,
                   "conversation_b": [{"role": "user", "content": "q"}], "winner_model_b": 0},
         "{a: conversation_a, b: conversation_b, score_a: winner_model_a, "
         "score_b: winner_model_b}"),
        ("prompts", {"dialogue": [{"from": "human", "value": "q"}], "topic": "x"},
         "{messages: dialogue}"),
        ("sft", {"article": "q", "highlights": "a", "id": "7"},
         "{prompt: article, completion: highlights}"),
        ("pairs", {"prompt": "q", "reply_1": "a", "reply_2": "b", "votes_1": 3, "votes_2": 0},
         "{a: reply_1, b: reply_2, score_a: votes_1, score_b: votes_2}"),
        ("pairs", {"instruction": "q", "generations": ["a", "b"], "ratings": [4, 2]},
         "{prompt: instruction, answers: generations, scores: ratings}"),
        ("pairs", {"chosen_conversations": [{"role": "user", "content": "q"}],
                   "rejected_conversations": [{"role": "user", "content": "q"}]},
         "{chosen: chosen_conversations, rejected: rejected_conversations}"),
        ("pairs", {"the question": "q", "chosen": "a", "rejected": "b"},
         '{prompt: "the question"}'),
        ("sft", {"question": "q", "answer": "a"}, "{prompt: question, completion: answer}"),
        ("sft", {"problem": "q", "answer": "4", "solution": "2 + 2 = 4"},
         "{prompt: problem, completion: solution}"),
        ("sft", {"instruction": "q", "input": "c", "solution": "a"}, "{output: solution}"),
        ("sft", {"definition": "do", "inputs": "it", "targets": "a"},
         "{instruction: definition, output: targets, input: inputs}"),
        ("sft", {"article": "long", "highlights": "short", "id": "7"},
         "{prompt: article, completion: highlights}"),
        ("sft", {"prompt": "q", "text_a": "a", "text_b": "b", "winner": "b"},
         "{a: text_a, b: text_b, better: {column: winner, a: a, b: b}}"),
        ("prompts", {"dialogue": [{"from": "human", "value": "q"}]}, "{messages: dialogue}"),
        ("pairs", {"prompt": "q", "all_responses": ["a", "b"], "rank": [1, 2]},
         "{answers: all_responses, ranks: rank}"),
        ("sft", {"prompt": "q", "response": "a"}, "{completion: response}"),
        ("sft", {"problem": "q", "solution": "a"}, "{prompt: problem, completion: solution}"),
        ("sft", {"content": "t"}, "{text: content}"),
        ("sft", {"id": 1, "dialog": [{"role": "user", "content": "q"}]}, "{messages: dialog}"),
        ("labelled", {"prompt": "q", "response": "a", "is_safe": True},
         "{completion: response, label: is_safe}"),
        ("prompts", {"question": "q", "answer": "a"}, "{prompt: question}"),
        ("prompts", {"problem": "q", "level": 3}, "{prompt: problem}"),
        ("prompts", {"task": "GSM8K", "input": "q"}, "{prompt: input}"),
        ("prompts", {"input_key": "q"}, "{prompt: input_key}"),
        ("prompts", {"id": "a_0", "turns": ["first?", "then?"]}, "{prompt: turns.0}"),
        ("prompts", {"id": "a_0", "question": [[{"role": "user", "content": "q"}]]},
         "{prompt: question.0}"),
        ("prompts", {"context": "c", "context_messages": [{"role": "user", "content": "q"}]},
         "{prompt: context_messages}"),
        ("prompts", {"body": {"messages": [{"role": "user", "content": "q"},
                                           {"role": "assistant", "content": "a"}]}},
         "{messages: body.messages}"),
    ],
)  # fmt: skip
def test_rows_that_are_not_recognised_come_with_the_line_to_write(
    tmp_path: Path, chat_tokenizer: Any, job: str, row: dict[str, Any], line: str
) -> None:
    message = refused(tmp_path, chat_tokenizer, job, row)
    assert message.endswith(f": set data.columns: {line}")
    assert all(repr(name) in message for name in row)
    if "..." in line:
        return
    # With that line the row is recognised, whatever is wrong with what it says.
    loaders: dict[str, Any] = {"pairs": load_pairs, "sft": load_sft, "labelled": load_labelled}
    data = config(tmp_path, row, columns=yaml.safe_load(line))
    limit = {"context_tokens" if job == "prompts" else "max_length": 999}
    try:
        loaders.get(job, load_prompts)(data, chat_tokenizer, **limit)
    except DataError as error:
        assert not re.search("no known format|cannot be made of|no such column", str(error))


@pytest.mark.parametrize(
    ("job", "row", "ending"),
    [
        # Ids, models, kinds and systems are nothing that was asked or answered.
        ("prompts", {"id": "some id", "category": "the kind"}, "{prompt: ...}"),
        ("prompts", {"system_prompt": "be brief"}, "{prompt: ...}"),
        ("prompts", {"meta_instruction": "be brief", "n": 2}, "{prompt: ...}"),
        ("prompts", {"response": "an answer"}, "{prompt: ...}"),
        ("sft", {"model_id": "gpt 4", "answer_id": "x y"}, "{prompt: ..., completion: ...}"),
        ("sft", {"task_id": "t 0", "completion": "a"}, "{prompt: ...}"),
        # Turns may be the user's alone.
        ("sft", {"id": 1, "turns": ["q", "a"]}, "{prompt: ..., completion: ...}"),
        ("sft", {"prompt": "q", "completions": [{"model": "m", "said": "a"}]}, "{completion: ...}"),
        # One of several answers is none to train, and two of them are no prompt and answer.
        ("sft", {"question": "q", "answer_a": "a", "answer_b": "b"},
         "{prompt: question, a: answer_a, b: answer_b, better: {column: LABEL, a: ..., b: ...}}"),
        ("labelled", {"prompt": "q", "response 1": "a", "response 2": "b", "label": 1},
         '{a: "response 1", b: "response 2", better: {column: LABEL, a: ..., b: ...}}'),
        ("labelled", {"question": "q", "output": "a", "rating": 3},
         "{prompt: ..., completion: ..., label: ...}"),
        # A text beside what was asked is not trained alone.
        ("sft", {"input": "q", "content": "a", "reasoning_content": "r"},
         "{prompt: ..., completion: ...}"),
        ("pairs", {"prompt": "q", "model_a": "x y", "model_b": "z", "n_a": 1, "n_b": 0},
         "{chosen: ..., rejected: ...}"),
    ],
)  # fmt: skip
def test_no_line_is_better_than_one_that_trains_something_else(
    tmp_path: Path, chat_tokenizer: Any, job: str, row: dict[str, Any], ending: str
) -> None:
    message = refused(tmp_path, chat_tokenizer, job, row)
    assert message.endswith(f"data.columns: {ending}")


def test_what_a_proposed_line_would_train_is_said(tmp_path: Path, chat_tokenizer: Any) -> None:
    row = {"prompt": "q", "response": "a", "is_safe": False}
    message = refused(tmp_path, chat_tokenizer, "sft", row)
    assert message.endswith(
        "set data.columns: {completion: response}; 'is_safe' says which answers are good, and all "
        "would be trained"
    )


def test_tokens_are_no_rows(tmp_path: Path, chat_tokenizer: Any) -> None:
    row = {"input_ids": [1, 2], "labels": [1, 2]}
    assert "tokens (input_ids) are not read" in refused(tmp_path, chat_tokenizer, "sft", row)


@pytest.mark.parametrize("answer", ["summary", "response", "target"])
def test_a_text_with_an_answer_beside_it_is_trained_only_if_that_is_said(
    tmp_path: Path, chat_tokenizer: Any, answer: str
) -> None:
    row = {"text": "long", answer: "short"}
    message = refused(tmp_path, chat_tokenizer, "sft", row)
    assert message == (
        f"column 'text' has {answer!r} beside it: to train that as the answer set data.columns: "
        f"{{prompt: text, completion: {answer}}}; to train text alone, as a whole, set "
        "data.format: text"
    )
    names = {"prompt": "text", "completion": answer}
    [example] = load_sft(config(tmp_path, row, columns=names), chat_tokenizer, max_length=99).rows
    trained = example.token_ids_T[example.trained_T]
    assert chat_tokenizer.decode(trained) == "short</s>"
    data = config(tmp_path, row, format="text")
    [example] = load_sft(data, chat_tokenizer, max_length=99).rows
    assert chat_tokenizer.decode(example.token_ids_T) == "<s>long</s>"
    [prompt] = load_prompts(config(tmp_path, row), chat_tokenizer, context_tokens=99).rows
    assert (prompt.text, prompt.columns) == ("long", {answer: "short"})


def test_a_message_of_a_conversation_is_no_text(tmp_path: Path, chat_tokenizer: Any) -> None:
    for row in (
        {"message_id": "1", "parent_id": None, "text": "q", "role": "prompter"},
        {"role": "user", "content": "q"},
    ):
        for job in ("sft", "prompts"):
            message = refused(tmp_path, chat_tokenizer, job, row)
            assert "each row is one message of a conversation: put those of one" in message


@pytest.mark.parametrize("job", ["pairs", "prompts"])
def test_of_two_texts_alone_the_common_beginning_may_be_the_prompt(
    tmp_path: Path, chat_tokenizer: Any, job: str
) -> None:
    row = {"chosen": "The sky is blue", "rejected": "The sky is red"}
    message = refused(tmp_path, chat_tokenizer, job, row)
    assert "or set data.format: common_beginning" in message


def test_a_label_of_single_answers_is_for_kto(tmp_path: Path, chat_tokenizer: Any) -> None:
    row = {"prompt": "q", "completion": "a", "label": True}
    message = refused(tmp_path, chat_tokenizer, "pairs", row)
    assert message.endswith(
        "answers that are labelled one by one are for dpo with loss_type [kto]; pairs are two or "
        "more answers to one prompt"
    )


def test_an_error_names_a_column_as_the_file_does(tmp_path: Path, chat_tokenizer: Any) -> None:
    row = {"instruction": "q", "response1": True, "response2": "b", "annotator1": 1}
    message = refused(tmp_path, chat_tokenizer, "pairs", row)
    assert message.startswith("wrong type: column 'response1' must be a string or a list of chat")
    shp = {"history": 7, "human_ref_A": "a", "human_ref_B": "b", "labels": 1}
    message = refused(tmp_path, chat_tokenizer, "pairs", shp)
    assert message.startswith("wrong type: column 'history' must be")


def test_the_line_that_is_said_is_one_that_works(tmp_path: Path, chat_tokenizer: Any) -> None:
    row = {"question": "q", "chosen": "The sky is blue", "rejected": "The sky is red"}
    data = config(tmp_path, row, columns={"prompt": "question"})
    [pair] = load_pairs(data, chat_tokenizer, max_length=99).rows
    assert chat_tokenizer.decode(pair.prompt_ids_T) == "<s>q"
    assert [chat_tokenizer.decode(answer) for answer in pair.answer_ids_K] == [
        "The sky is blue</s>",
        "The sky is red</s>",
    ]


@pytest.mark.parametrize("job", ["pairs", "sft", "labelled", "prompts"])
@pytest.mark.parametrize(
    "row",
    [
        {f"column_{number}": "x" * 100_000 for number in range(100)},
        {f"{'long name' * 1000}\n{number}": number for number in range(100)},
        {"a": {"b": {"c": {"d": {str(number): {} for number in range(9)}}}}, "x": [[[[]]]]},
        {str(number): {str(other): "\n" * 99 for other in range(99)} for number in range(99)},
        {"": None},
        {},
    ],
    ids=["many", "long", "deep", "wide", "nameless", "empty"],
)
def test_what_is_said_has_ten_lines_at_most_whatever_the_row(
    tmp_path: Path, chat_tokenizer: Any, job: str, row: dict[str, Any]
) -> None:
    for settings in ({}, {"columns": {"prompt": "question" * 1000}}, {"format": "preference"}):
        if settings and not row:
            continue
        message = refused(tmp_path, chat_tokenizer, job, row, **settings)
        assert "\n" not in message
        assert len(message) <= 1000


def test_text_beside_a_prompt_is_trained_whole_and_that_is_said(
    tmp_path: Path, chat_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    row = {"prompt": "q", "text": "all of it"}
    with caplog.at_level(logging.WARNING):
        [example] = load_sft(config(tmp_path, row), chat_tokenizer, max_length=99).rows
    assert chat_tokenizer.decode(example.token_ids_T[example.trained_T]) == "all of it</s>"
    assert "set data.columns: {completion: text}" in caplog.text
    data = config(tmp_path, row, columns={"completion": "text"})
    [example] = load_sft(data, chat_tokenizer, max_length=99).rows
    assert chat_tokenizer.decode(example.token_ids_T) == "<s>qall of it</s>"
    [prompt] = load_prompts(config(tmp_path, row), chat_tokenizer, context_tokens=99).rows
    assert (prompt.text, prompt.columns) == ("q", {"text": "all of it"})


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": 42},
        {"input": "q", "target": 42},
        {"instruction": "q", "output": 42},
    ],
)
def test_an_answer_may_be_a_number(
    tmp_path: Path, chat_tokenizer: Any, row: dict[str, Any]
) -> None:
    [example] = load_sft(config(tmp_path, row), chat_tokenizer, max_length=99).rows
    trained = chat_tokenizer.decode(example.token_ids_T[example.trained_T])
    assert trained in ("42</s>", "42<|im_end|>")


@pytest.mark.parametrize(
    ("label", "is_good"),
    [
        (True, True), (1, True), (1.0, True), ("true", True), ("1.0", True), ("Yes", True),
        (False, False), (0, False), (0.0, False), ("False", False), ("no", False),
    ],
)  # fmt: skip
def test_a_label_is_true_or_false_in_any_form(
    tmp_path: Path, chat_tokenizer: Any, label: Any, is_good: bool
) -> None:
    row = {"prompt": "q", "completion": "a", "label": label}
    [answer] = load_labelled(config(tmp_path, row), chat_tokenizer, max_length=99).rows
    assert answer.desirable is is_good


@pytest.mark.parametrize(("label", "said"), [(True, "good"), (False, "bad")])
def test_labels_that_are_all_the_same_are_refused(
    tmp_path: Path, chat_tokenizer: Any, label: bool, said: str
) -> None:
    row = {"prompt": "q", "completion": "a", "label": label}
    alike = load_labelled(config(tmp_path, row, row), chat_tokenizer, max_length=99)
    with pytest.raises(DataError, match=f"every answer is labelled {said}: kto compares"):
        check_labels(alike.rows)
    both = config(tmp_path, row, {**row, "label": not label})
    check_labels(load_labelled(both, chat_tokenizer, max_length=99).rows)
