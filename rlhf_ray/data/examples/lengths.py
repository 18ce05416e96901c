"""What happens to sequences that are too long: one limit for prompts, examples and answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlhf_ray.config.data import DataConfig
from rlhf_ray.data.chat.borders import Tokenizer
from rlhf_ray.errors import DataError, UnusableRow

OverLength = Literal["auto", "error", "drop", "truncate", "split"]


@dataclass(frozen=True, kw_only=True)
class LengthLimit:
    """The most tokens of one sequence, and what becomes of longer ones.

    Attributes:
        num_tokens: The limit.
        name: The setting that it comes from.
        over_length: As in `DataConfig`.
        longest_token: Characters of the tokenizer's longest token, by which a text of megabytes is
            known to be too long without tokenizing it.
    """

    num_tokens: int
    name: str
    over_length: OverLength
    longest_token: int

    def __post_init__(self) -> None:
        """Check the limit.

        Raises:
            ValueError: No room for a single token.
        """
        if self.num_tokens < 1:
            raise ValueError(f"{self.name} must leave at least 1 token, got {self.num_tokens}")

    @classmethod
    def of(
        cls, config: DataConfig, tokenizer: Tokenizer, num_tokens: int, name: str
    ) -> LengthLimit:
        """What the configuration says of a tokenizer's sequences.

        A token stands for no more characters than its own, the unknown one excepted.
        """
        return cls(
            num_tokens=num_tokens,
            name=name,
            over_length=config.over_length,
            longest_token=max(map(len, tokenizer.get_vocab())),
        )

    @property
    def truncates(self) -> bool:
        """Whether a sequence that is too long is cut."""
        return self.over_length in ("truncate", "split")

    def check_text(self, num_characters: int, where: str) -> None:
        """Refuse a text that cannot fit, unless it is to be truncated.

        Raises:
            UnusableRow: It is too long and to be dropped.
            DataError: It is too long and the policy is `error`.
        """
        if num_characters > self.num_tokens * self.longest_token and not self.truncates:
            self._refuse(f"{num_characters} characters", where)

    def fits(self, num_tokens: int, where: str) -> bool:
        """Whether a sequence stays as it is; otherwise it is to be truncated.

        Raises:
            UnusableRow: It is too long and to be dropped.
            DataError: It is too long and the policy is `error`.
        """
        if num_tokens > self.num_tokens and not self.truncates:
            self._refuse(f"{num_tokens} tokens", where)
        return num_tokens <= self.num_tokens

    def nothing_left(self, where: str) -> UnusableRow:
        """A sequence of which truncation would leave nothing that counts."""
        return UnusableRow(where, "too long", f"nothing left within {self.num_tokens} tokens")

    def _refuse(self, length: str, where: str) -> None:
        detail = f"{length}, but {self.name} allows {self.num_tokens} tokens"
        if self.over_length != "drop":
            raise DataError(f"{where}: {detail}; set over_length to drop or truncate")
        raise UnusableRow(where, "too long", detail)


def keep_last(token_ids_T: list[int], num_tokens: int, tokenizer: Tokenizer) -> list[int]:
    """A prompt's last tokens, behind its begin token if it has one: models lean on it.

    The last ones hold the question, and a template's opening of an answer.
    """
    if len(token_ids_T) <= num_tokens:
        return token_ids_T
    begins = {tokenizer.bos_token_id, tokenizer.cls_token_id} - {None}
    if num_tokens > 1 and token_ids_T[0] in begins:
        return [token_ids_T[0], *token_ids_T[-(num_tokens - 1) :]]
    return token_ids_T[-num_tokens:]
