"""Jobs in environments: what prompts show of them, what is refused, and what roles are told."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from fake_pool import FakeLoop, FakePool

from rlhf_ray.config.online import GrpoConfig
from rlhf_ray.environments.turns import TurnTemplate
from rlhf_ray.errors import ConfigError
from rlhf_ray.jobs.online import GRPO, load

# Writes tools first; the other one writes answers anew once something follows them.
TEMPLATE = (
    "{% if tools %}{% for t in tools %}{{ t.function.name + ' ' }}{% endfor %}{% endif %}"
    "{% for m in messages %}{{ m.role[0] + m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
ANEW = (
    "{% for m in messages %}{{ m.role[0] }}"
    "{% if m.role == 'assistant' and not loop.last %}!{% endif %}{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
WORLD = (
    "from rlhf_ray.environments.protocol import Step\n"
    "class World:\n"
    "    async def reset(self, prompt, seed): ...\n"
    "    async def step(self, answer): return Step(is_done=True)\n"
    "    async def close(self): ...\n"
)


@pytest.fixture
def job(stories, tmp_path):
    """`job(row, **sections)`: in an environment without tools, unless one is named."""

    def make(row=None, *, template=TEMPLATE, **sections):
        (tmp_path / "world.py").write_text(WORLD)
        rows = tmp_path / "rows.jsonl"
        row = row or {"prompt": [{"role": "user", "content": "Why?"}]}
        rows.write_text("".join(json.dumps({**row, "number": n}) + "\n" for n in range(4)))
        return GrpoConfig.model_validate(
            {
                "run_dir": str(tmp_path / "run"),
                "total_steps": 2,
                "data": {"path": str(rows)},
                "policy": {"model": {"path": str(stories), "chat_template": template}},
                "environment": {"path": f"{tmp_path / 'world.py'}:World"},
                **sections,
            }
        )

    return make


def test_prompts_show_the_environments_tools_and_a_rows_own_instead(job):
    calculator = {"path": "rlhf_ray.environments.examples:calculator"}
    data = load(job(environment=calculator))
    text = data.tokenizer.decode(data.prompts[0].token_ids_T)
    assert text.startswith("calculate uWhy?")
    assert data.prompts[3].columns["number"] == 3
    schema = {"type": "function", "function": {"name": "look", "description": "", "parameters": {}}}
    row = {"prompt": [{"role": "user", "content": "Why?"}], "tools": [schema]}
    data = load(job(row, environment=calculator))
    assert data.tokenizer.decode(data.prompts[0].token_ids_T).startswith("look uWhy?")
    assert not load(job()).tokenizer.decode(data.prompts[0].token_ids_T).startswith("calculate")


def test_what_turns_cannot_follow_is_refused(job):
    with pytest.raises(ConfigError, match=r"prompts must be chats, as turns follow them, got 'Why"):
        load(job({"prompt": "Why?"}))
    load(job({"prompt": "Why?"}, data={"path": job({"prompt": "Why?"}).data.path, "chat": True}))
    with pytest.raises(ConfigError, match="renders an answer anew once messages of the role 'user"):
        load(job(template=ANEW))
    world = job().environment.path
    load(job(template=ANEW, environment={"path": world, "template": "append"}))
    with pytest.raises(ConfigError, match=r"with the arguments {'size': 3} raised TypeError"):
        load(job(environment={"path": world, "arguments": {"size": 3}}))


def test_held_out_prompts_must_be_chats_as_well(job, tmp_path):
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(json.dumps({"prompt": "Why not?"}))
    with pytest.raises(ConfigError, match=r"got 'Why not\?' \(.*: set eval\.data\.chat, or take"):
        load(job(eval={"data": {"path": str(held_out)}, "every": 1}))
    load(job(eval={"data": {"path": str(held_out), "chat": True}, "every": 1}))


def test_a_later_row_that_is_no_chat_is_refused(job, tmp_path):
    rows = tmp_path / "mixed.jsonl"
    chats = [{"prompt": [{"role": "user", "content": "Why?"}]}] * 2
    rows.write_text("".join(json.dumps(row) + "\n" for row in [*chats, {"prompt": "How?"}]))
    with pytest.raises(ConfigError, match=r"got 'How\?' .*: set data\.chat"):
        load(job(data={"path": str(rows)}))


@pytest.mark.parametrize("key", ["data", "eval"])
def test_the_template_is_checked_with_the_options_of_every_row(job, tmp_path, key):
    """Only a row whose variable says so has its answers written anew."""
    template = ANEW.replace("not loop.last", "not loop.last and enable_thinking is false")
    rows = tmp_path / "options.jsonl"
    asked = {"prompt": [{"role": "user", "content": "Why?"}]}
    columns = [{"enable_thinking": True}] * 3 + [{"enable_thinking": False}]
    rows.write_text("".join(json.dumps({**asked, **more}) + "\n" for more in columns))
    given = {"path": str(rows)}
    sections = {"data": given} if key == "data" else {"eval": {"data": given, "every": 1}}
    with pytest.raises(ConfigError, match=r"renders an answer anew .* \(of .*:3\)"):
        load(job(template=template, **sections))
    rows.write_text(json.dumps({**asked, **columns[0]}))
    load(job(template=template, **sections))


def test_rows_alike_for_the_template_are_checked_once(job, monkeypatch):
    checked = []
    monkeypatch.setattr(TurnTemplate, "check", lambda template, roles: checked.append(template))
    load(job())
    assert len(checked) == 1


async def test_workers_load_the_environment_whose_reward_has_a_weight(job, tmp_path):
    pool = FakePool(tmp_path)
    grpo = replace(GRPO, loop=lambda *arguments: FakeLoop(pool.asked))
    await grpo.prepare(job()).run(pool)
    assert pool.calls.index("load rollout") < pool.calls.index("load environment")
    spec = pool.specs["environment"]
    assert spec.chat_template == TEMPLATE and spec.max_tokens == 512 and not spec.tools
    assert set(spec.end_token_ids) == {1, 2}
    assert pool.specs["experience"].reward_weights == {"score": 1.0, "environment": 1.0}
