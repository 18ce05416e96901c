"""From rows to tokenized prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rlhf_ray.config.data import DataConfig
from rlhf_ray.data.chat.answers import tokenize_prompt
from rlhf_ray.data.chat.borders import Tokenizer, decode, text_tokens, written_tokens
from rlhf_ray.data.chat.reasoning import behind_reasoning, ends_open
from rlhf_ray.data.chat_options import template_options
from rlhf_ray.data.examples.lengths import LengthLimit, beginning, ending, keep_last
from rlhf_ray.data.examples.tokenization import Kept, Tokenization
from rlhf_ray.data.formats.row_format import Kind
from rlhf_ray.data.formats.samples import Sample, num_characters, prompt_of, reference_answer
from rlhf_ray.data.json_values import Text
from rlhf_ray.data.messages import as_chat
from rlhf_ray.data.rows.records import PROMPTS, RecordKind
from rlhf_ray.errors import DataError, RowError
from rlhf_ray.types import Prompt

# Enough for a tag that is spelt by ordinary tokens, and space behind it.
_TAIL_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class Prompts(Tokenization[Prompt]):
    """Prompts for rollouts; `prompt_tokens` as in `DataConfig`.

    `tools` are JSON schemas of an environment, which chats show.

    A column `prompt` is the prompt as it stands; of other formats it is what the answers follow,
    and of a text all of it. Chat messages, and with `chat` also strings, go through the chat
    template. If the last message of `prompt` is the assistant's, the policy continues it; of a
    whole chat that ends so, it is the reference that reward functions get as `answer`, unless the
    row has a column of that name.

    `prompt_tokens` cuts a text to its first tokens, a begin token among them; `text` is then what
    they spell. A truncated prompt keeps its *last* tokens; `text` stays whole then: rewards
    judge the question that was asked.
    """

    what: ClassVar[str] = "prompts"
    kinds: ClassVar[frozenset[Kind]] = frozenset(
        {"prompts", "texts", "examples", "labels", "preferences"}
    )
    kind: ClassVar[RecordKind[Prompt]] = PROMPTS

    prompt_tokens: int
    tools: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def of(cls, config: DataConfig, tokenizer: Tokenizer, *, max_length: int) -> Prompts:
        """With what the context leaves as `max_length`, which `max_prompt_tokens` can lower."""
        by_setting = 0 < config.max_prompt_tokens <= max_length
        limit = LengthLimit.of(
            config,
            tokenizer,
            config.max_prompt_tokens if by_setting else max_length,
            "max_prompt_tokens" if by_setting else "the context",
        )
        return cls(
            tokenizer=tokenizer, chat=config.chat, limit=limit, prompt_tokens=config.prompt_tokens
        )

    def tokenize(self, sample: Sample) -> Kept[Prompt]:
        """Token ids of the prompt, and the prompt as reward functions get it."""
        token_ids_T, text = self._tokens(sample)
        if not token_ids_T:
            raise RowError(sample.where, "the prompt holds no tokens")
        fits = self.limit.fits(len(token_ids_T), sample.where)
        if not fits:
            token_ids_T = keep_last(token_ids_T, self.limit.num_tokens, self.tokenizer)
        columns, answer = sample.columns, reference_answer(sample)
        if answer:
            columns = {"answer": answer, **columns}
        prompt = Prompt(
            prompt_id=sample.sample_id,
            token_ids_T=tuple(token_ids_T),
            text=text,
            columns=columns,
            opens_reasoning=_opens_reasoning(self.tokenizer, token_ids_T, text),
        )
        return Kept(row=prompt, truncated=not fits)

    def _tokens(self, sample: Sample) -> tuple[list[int], Text]:
        text = prompt_of(sample)
        if self.prompt_tokens:
            if not isinstance(text, str):
                detail = "prompt_tokens cuts texts, but this prompt is a chat"
                raise RowError(sample.where, "wrong type", detail)
            text, token_ids_T = self._cut(text)
            if not self.chat:
                return token_ids_T, text
        self.limit.check_text(num_characters(text), sample.where)
        shown = as_chat(text, "user") if self.chat else text
        if self.limit.truncates:
            shown = ending(shown, self.limit.num_tokens, self.tokenizer)
        options: dict[str, Any] = {}
        if not isinstance(shown, str):
            options = template_options(sample.columns, sample.where, tools=self.tools)
        ids_T = tokenize_prompt(self.tokenizer, shown, options=options, where=sample.where)
        return ids_T, text

    def _cut(self, text: str) -> tuple[str, list[int]]:
        """A text's beginning and its tokens; in a chat it is the template that begins."""
        text = str(beginning(text, self.prompt_tokens, self.tokenizer))
        tokenize = written_tokens if self.chat else text_tokens
        token_ids_T = tokenize(self.tokenizer, text)
        if len(token_ids_T) <= self.prompt_tokens:
            return text, token_ids_T
        num_begin = len(token_ids_T) - len(written_tokens(self.tokenizer, text))
        if not self.tokenizer.is_fast:
            raise DataError("prompt_tokens needs a fast tokenizer, which knows where tokens stand")
        offsets_T = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )["offset_mapping"]
        kept = max(0, self.prompt_tokens - num_begin)
        # A character of several tokens stays whole.
        while kept and offsets_T[kept][0] < offsets_T[kept - 1][1]:
            kept -= 1
        end = offsets_T[kept - 1][1] if kept else 0
        return text[:end], token_ids_T[: num_begin + kept]


def _opens_reasoning(tokenizer: Tokenizer, token_ids_T: Sequence[int], text: Text) -> bool:
    """Whether a response to a prompt begins inside of a block of reasoning.

    So it does where the prompt's template writes `<think>` last, and where the assistant's turn is
    to be continued and has begun one.
    """
    if not isinstance(text, str) and text[-1]["role"] == "assistant":
        return not behind_reasoning(f"{text[-1]['content']}.")
    return ends_open(decode(tokenizer, token_ids_T[-_TAIL_TOKENS:]))
