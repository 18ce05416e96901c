"""The smallest rows of published preference data, by format, each with what must come of it.

The better answer is `good`, the worse one `bad`, and `q` was asked, if nothing else is said.
"""

from __future__ import annotations

from typing import Any

USER = {"role": "user", "content": "q"}
GOOD = {"role": "assistant", "content": "good"}
BAD = {"role": "assistant", "content": "bad"}

# By format: rows whose better answer stands first and second, and one that is a tie.
PAIRS: dict[str, list[dict[str, Any]]] = {
    "pku_saferlhf": [
        {
            "prompt": "q",
            "response_0": "good",
            "response_1": "bad",
            "is_response_0_safe": False,
            "is_response_1_safe": True,
            "better_response_id": 0,
            "safer_response_id": 1,
        },
        {"prompt": "q", "response_0": "bad", "response_1": "good", "better_response_id": 1},
    ],
    "shp": [
        {"history": "q", "human_ref_A": "good", "human_ref_B": "bad", "labels": 1, "score_A": 9},
        {"history": "q", "human_ref_A": "bad", "human_ref_B": "good", "labels": 0, "score_A": 2},
    ],
    "helpsteer3": [
        {"context": [USER], "response1": "good", "response2": "bad", "overall_preference": -2},
        {"context": [USER], "response1": "bad", "response2": "good", "overall_preference": 3},
        {"context": [USER], "response1": "bad", "response2": "good", "overall_preference": 0},
    ],
    "helpsteer2_preference": [
        {"prompt": "q", "response_1": "good", "response_2": "bad", "preference_strength": -1},
        {"prompt": "q", "response_1": "bad", "response_2": "good", "preference_strength": 1},
        {"prompt": "q", "response_1": "bad", "response_2": "good", "preference_strength": 0},
    ],
    "webgpt": [
        {
            "question": {"id": "eli5/1", "full_text": "q"},
            "answer_0": "good",
            "score_0": 0.5,
            "answer_1": "bad",
            "score_1": -0.5,
        },
        {
            "question": {"full_text": "q"},
            "answer_0": "bad",
            "score_0": -1.0,
            "answer_1": "good",
            "score_1": 1.0,
        },
        {
            "question": {"full_text": "q"},
            "answer_0": "bad",
            "score_0": 0.0,
            "answer_1": "good",
            "score_1": 0.0,
        },
    ],
    "arena": [
        {"conversation_a": [USER, GOOD], "conversation_b": [USER, BAD], "winner": "model_a"},
        {"conversation_a": [USER, BAD], "conversation_b": [USER, GOOD], "winner": "model_b"},
        {"conversation_a": [USER, BAD], "conversation_b": [USER, GOOD], "winner": "tie (bothbad)"},
    ],
    "arena_texts": [
        {"prompt": "q", "response_a": "good", "response_b": "bad", "winner": "model_a"},
        {"prompt": "q", "response_a": "bad", "response_b": "good", "winner": "model_b"},
        {"prompt": "q", "response_a": "bad", "response_b": "good", "winner": "tie"},
    ],
    "alpaca_farm": [
        {"instruction": "q", "input": "", "output_1": "good", "output_2": "bad", "preference": 1},
        {"instruction": "q", "input": "", "output_1": "bad", "output_2": "good", "preference": 1.9},
        {"instruction": "q", "input": "", "output_1": "bad", "output_2": "good", "preference": 1.5},
    ],
    "llmbar": [
        {"input": "q", "output_1": "good", "output_2": "bad", "label": 1},
        {"input": "q", "output_1": "bad", "output_2": "good", "label": 2},
    ],
    "pandalm": [
        {
            "instruction": "q",
            "input": "",
            "response1": "good",
            "response2": "bad",
            "annotator1": 1,
            "annotator2": 0,
            "annotator3": 1,
        },
        {
            "instruction": "q",
            "input": "",
            "response1": "bad",
            "response2": "good",
            "annotator1": 2,
            "annotator2": 2,
            "annotator3": 1,
        },
        {
            "instruction": "q",
            "input": "",
            "response1": "bad",
            "response2": "good",
            "annotator1": 2,
            "annotator2": 0,
            "annotator3": 1,
        },
    ],
    "choice": [
        {"prompt": "q", "a": "good", "b": "bad", "better": "a"},
        {"prompt": "q", "a": "bad", "b": "good", "better": "b"},
        {"prompt": "q", "a": "bad", "b": "good", "better": "tie"},
    ],
    "scored_choice": [
        {"prompt": "q", "a": "good", "b": "bad", "score_a": 2, "score_b": 1},
        {"prompt": "q", "a": "bad", "b": "good", "score_a": "1", "score_b": 1.5},
        {"prompt": "q", "a": "bad", "b": "good", "score_a": 0, "score_b": 0},
    ],
    "openai_preference": [
        {
            "input": {"messages": [USER], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [GOOD],
            "non_preferred_output": [BAD],
        }
    ],
    "message_pairs": [
        {
            "chosen_messages": [
                {"role": "user", "content": "q", "loss_weight": 0.0},
                {"role": "assistant", "content": "good", "loss_weight": 1.0},
            ],
            "rejected_messages": [
                {"role": "user", "content": "q", "loss_weight": 0.0},
                {"role": "assistant", "content": "bad", "loss_weight": 1.0},
            ],
        }
    ],
}
SUMMARIES = [
    {
        "info": {"subreddit": "dogs", "title": "Rex", "post": "He barks.", "article": None},
        "summaries": [{"text": " bad", "policy": "x"}, {"text": " good", "policy": "y"}],
        "choice": 1,
    },
    {
        "info": {"post": None, "article": "News."},
        "summaries": [{"text": " good"}, {"text": " bad"}],
        "choice": 0,
    },
]
NECTAR = {
    "prompt": "\n\nHuman: q\n\nAssistant: ",
    "answers": [
        {"answer": "worst", "model": "x", "rank": 3.0},
        {"answer": "good", "model": "y", "rank": 1.0},
        {"answer": "bad", "model": "z", "rank": 2.0},
    ],
    "turns": 1,
}
ULTRAFEEDBACK = {
    "source": "evol",
    "instruction": "q",
    "models": ["x", "y"],
    "completions": [
        {"response": "bad", "overall_score": 3.5, "model": "x"},
        {"response": "good", "overall_score": 8.0, "model": "y"},
    ],
}


def helpsteer(prompt: str, response: str, helpfulness: int) -> dict[str, Any]:
    return {"prompt": prompt, "response": response, "helpfulness": helpfulness, "verbosity": 1}


def message(
    tree: str, id_: str, parent: str | None, text: str, rank: int | None = None
) -> dict[str, Any]:
    """A message of OpenAssistant's flat files."""
    role = "prompter" if rank is None else "assistant"
    return {
        "message_id": id_,
        "parent_id": parent,
        "text": text,
        "role": role,
        "rank": rank,
        "message_tree_id": tree,
    }


TREE = [
    message("t", "t", None, "q"),
    message("t", "t1", "t", "bad", rank=1),
    message("t", "t2", "t", "good", rank=0),
]
STACK_EXCHANGE = {
    "qid": 1,
    "question": "q",
    "answers": [
        {"answer_id": 1, "text": "bad", "pm_score": 1, "selected": False},
        {"answer_id": 2, "text": "good", "pm_score": 5, "selected": True},
    ],
}
ROOT = {
    **message("t", "t", None, "q"),
    "replies": [
        {**message("t", "t1", "t", "bad", rank=1), "replies": []},
        {**message("t", "t2", "t", "good", rank=0), "replies": []},
    ],
}
# One row, or rows that belong together, of every published format by its name.
PUBLISHED: dict[str, list[dict[str, Any]]] = {
    **{name: rows[:1] for name, rows in PAIRS.items()},
    "summarize_feedback": SUMMARIES[:1],
    "ultrafeedback": [ULTRAFEEDBACK],
    "helpsteer": [helpsteer("q", "good", 4), helpsteer("q", "bad", 1)],
    "oasst_flat": TREE,
    "prompt_messages": [{"prompt": "q", "messages": [USER, GOOD]}],
    "labelled_messages": [{"messages": [USER, GOOD], "label": True}],
    "labelled_sharegpt": [
        {
            "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}],
            "label": True,
        }
    ],
    "lima": [{"conversations": ["q", "good", "and?", "good"], "source": "stackexchange"}],
    "ultrachat": [{"id": "0", "data": ["q", "good", "and?", "good"]}],
    "capybara": [
        {
            "source": "x",
            "conversation": [{"input": "q", "output": "good"}, {"input": "and?", "output": "good"}],
        }
    ],
    "stepwise": [{"prompt": "q", "completions": ["step 1", "2"], "labels": [True, False]}],
    "prompt_text": [{"prompt": "q", "text": "all of it"}],
    "stack_exchange": [STACK_EXCHANGE],
    "oasst_message": [{name: value for name, value in ROOT.items() if name != "message_tree_id"}],
    "conversation": [{"conversation_id": "0", "conversation": [USER, GOOD], "model": "x"}],
    "dolly": [{"instruction": "q", "context": "c", "response": "good", "category": "qa"}],
    "instruction_response": [{"instruction": "q", "input": "c", "response": "good"}],
    "query_response": [{"query": "q", "response": "good", "history": [["before", "so"]]}],
    "xlam": [
        {
            "query": "q",
            "answers": '[{"name": "add", "arguments": {"x": 1}}]',
            "tools": '[{"name": "add", "parameters": {}}]',
        }
    ],
    "flan": [{"inputs": "q", "targets": "good", "task": "t"}],
    "instruction": [{"instruction": "q", "input": "c", "kind": "open"}],
}
