"""A model's `generation_config.json` leaves with it as it came, also where transformers objects."""

import json
import shutil

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from rlhf_ray.learner.export import export_model


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 0.6, "top_p": 0.9},
        {"do_sample": False, "temperature": 0.7, "eos_token_id": [2, 1], "of_our_own": "kept"},
        {"early_stopping": True, "num_beams": 1},
        {"do_sample": True, "temperature": 0.6},
    ],
)
def test_what_came_with_the_model_goes_with_it(stories, tmp_path, given):
    folder = tmp_path / "model"
    shutil.copytree(stories, folder)
    (folder / "generation_config.json").write_text(json.dumps(given))
    model = AutoModelForCausalLM.from_pretrained(folder)
    export_model(model, tmp_path / "export", str(stories), write=True)
    written = json.loads((tmp_path / "export/generation_config.json").read_text())
    assert written | given == written
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    loaded = GenerationConfig.from_pretrained(tmp_path / "export")
    for key, value in given.items():
        assert getattr(exported.generation_config, key) == value
        assert getattr(loaded, key) == value


@pytest.mark.parametrize("given", [{"temperature": 0.6}, {"do_sample": True, "max_length": 77}])
def test_what_stands_in_config_json_goes_too(stories, tmp_path, given):
    """As older checkpoints have it; transformers moves it to the generation's configuration."""
    folder = tmp_path / "model"
    shutil.copytree(stories, folder)
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **given}))
    model = AutoModelForCausalLM.from_pretrained(folder)
    export_model(model, tmp_path / "export", str(stories), write=True)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    for key, value in given.items():
        assert getattr(exported.generation_config, key) == value


@pytest.mark.parametrize("own", [2, [2], None])
def test_a_servers_answers_end_where_the_template_ends_a_turn(stories, tmp_path, own):
    """Of a base model whose own end is that of a document, trained on chats."""
    tokenizer = AutoTokenizer.from_pretrained(stories)
    turn_end = next(i for i in (*tokenizer.all_special_ids, 9) if i not in (2, None))
    end = tokenizer.convert_ids_to_tokens(turn_end)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}" + end + "\n{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    model = AutoModelForCausalLM.from_pretrained(stories)
    model.generation_config.eos_token_id = own
    for source, target in (("tokenizer", "export"), ("export", "again")):
        export_model(model, tmp_path / target, str(tmp_path / source), write=True)
        loaded = GenerationConfig.from_pretrained(tmp_path / target)
        assert loaded.eos_token_id == [*([2] if own else []), turn_end]
        model = AutoModelForCausalLM.from_pretrained(tmp_path / target)
