"""The real model and texts that tests use, and the order: quick tests before the cluster's."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[1]

# Two busy cores make any deadline of one example a matter of luck.
settings.register_profile("busy_machine", deadline=None)
settings.load_profile("busy_machine")

# A shell has what it starts in its background ignore SIGINT, and so would the processes that tests
# start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The cluster and its engine start last, and end with the run. Of processes that share the tests
    # each begins with a stretch of the list, and the first with its head: what lies there is set up
    # by that one alone.
    items.sort(
        key=lambda item: (
            "cluster" in item.path.parts,
            item.get_closest_marker("set_up_once") is None,
        )
    )


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = Path(os.environ.get("RLHF_RAY_DATA", ROOT / "../shared/data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data: RLHF_RAY_DATA names {folder}, which is not there")
    return folder


@pytest.fixture(scope="session")
def stories(shared_data: Path) -> Path:
    """A real language model of 0.4 M parameters, with tied embeddings."""
    return shared_data / "models/stories260K"


# Small enough that a forward pass takes a millisecond, with every shape different from the others.
TINY = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_model("llama", tie_word_embeddings=True)`: a folder with a tiny random model.

    With `tokenizer_of=folder` another model's tokenizer goes with it.
    """
    made: dict[str, Path] = {}

    def make(model_type: str, *, tokenizer_of: Path | None = None, **settings: Any) -> Path:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        key = f"{model_type} {tokenizer_of} {sorted(settings.items())}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp(model_type)
            torch.manual_seed(0)
            config = AutoConfig.for_model(model_type, **{**TINY, **settings})
            AutoModelForCausalLM.from_config(config).float().save_pretrained(made[key])
            if tokenizer_of is not None:
                AutoTokenizer.from_pretrained(tokenizer_of).save_pretrained(made[key])
        return made[key]

    return make


@pytest.fixture(scope="session")
def make_encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_encoder(num_labels=3)`: a random classifier like RoBERTa, and a tokenizer of bytes.

    Without `separates` the tokenizer knows of no separator, and so of no pairs of texts.
    """

    def make(*, separates: bool = True, **settings: Any) -> Path:
        import torch
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
        from transformers import (
            PreTrainedTokenizerFast,
            RobertaConfig,
            RobertaForSequenceClassification,
        )

        folder = tmp_path_factory.mktemp("encoder")
        specials = ["<s>", "<pad>", "</s>", "<unk>"]
        symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {token: index for index, token in enumerate(specials + symbols)}
        backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
        PreTrainedTokenizerFast(
            tokenizer_object=backend,
            bos_token="<s>",
            eos_token="</s>",
            pad_token="<pad>",
            unk_token="<unk>",
            **({"cls_token": "<s>", "sep_token": "</s>"} if separates else {}),
        ).save_pretrained(folder)
        torch.manual_seed(0)
        shape = {"vocab_size": len(vocabulary), "type_vocab_size": 1, "pad_token_id": 1}
        config = RobertaConfig(**{**shape, "bos_token_id": 0, "eos_token_id": 2, **settings})
        RobertaForSequenceClassification(config).save_pretrained(folder)
        return folder

    return make
