"""No wait without a deadline: a walk over the syntax tree of every module.

What the tree shows is a call by name, so the rules are about names. An `await` of a Ray reference
looks like any other: for those `actors.cluster.deadline` is the one place that waits.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = [path for top in ("rlhf_ray", "actors", "launch") for path in (ROOT / top).rglob("*.py")]

# Calls that wait, whatever their arguments, unless `timeout` is one of them.
ALWAYS_WAIT = {
    *("ray.get", "ray.wait", "asyncio.wait", "asyncio.as_completed"),
    *("subprocess.run", "subprocess.call", "subprocess.check_call", "subprocess.check_output"),
    *("urllib.request.urlopen", "urlopen", "socket.create_connection"),
    *(f"session.{method}" for method in ("get", "post", "put", "request", "ws_connect")),
}
# The same for a method or function of any object: `dist.init_process_group`, `process.communicate`.
ALWAYS_WAIT_AS_METHOD = {
    *("init_process_group", "init_distributed", "new_group", "communicate", "monitored_barrier"),
}
# These wait when called without an argument; `d.get(key)` and `", ".join(parts)` have one.
WAIT_WITHOUT_ARGUMENTS = {"get", "join", "wait", "acquire", "result", "exception"}
# On an asyncio task, which our code calls `task`, these raise instead of waiting.
ASK_A_FINISHED_TASK = {"result", "exception"}
BLOCKING_KEYWORDS = {"block", "blocking"}
# What is awaited inside these has their deadline.
DEADLINE_CALLS = {"wait_for", "timeout", "timeout_at"}


def waits_without_deadline(tree: ast.AST) -> Iterator[ast.Call]:
    """Calls that may wait forever."""
    stack: list[tuple[ast.AST, bool]] = [(tree, False)]
    while stack:
        node, covered = stack.pop()
        if isinstance(node, ast.Call):
            if not covered and _waits(node) and not _has_timeout(node):
                yield node
            covered = covered or _is_deadline(node)
        if isinstance(node, ast.AsyncWith):
            covered = covered or any(_is_deadline(item.context_expr) for item in node.items)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            covered = False  # its body runs at another time
        stack += [(child, covered) for child in ast.iter_child_nodes(node)]


def _waits(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    if name in ALWAYS_WAIT:
        return True
    if name.rpartition(".")[2] in ALWAYS_WAIT_AS_METHOD:
        return True
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in WAIT_WITHOUT_ARGUMENTS:
        return False
    if call.func.attr in ASK_A_FINISHED_TASK and _is_task(call.func.value):
        return False
    keywords = {keyword.arg for keyword in call.keywords}
    return not call.args and keywords <= BLOCKING_KEYWORDS | {"timeout"}


def _is_task(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id.rpartition("_")[2] == "task"


def _has_timeout(call: ast.Call) -> bool:
    given = [keyword.value for keyword in call.keywords if keyword.arg == "timeout"]
    return any(not (isinstance(value, ast.Constant) and value.value is None) for value in given)


def _is_deadline(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    name = ast.unparse(node.func)
    return name.rpartition(".")[2] in DEADLINE_CALLS or name.startswith("deadline.")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_wait_has_a_deadline(path):
    found = list(waits_without_deadline(ast.parse(path.read_text(), str(path))))
    assert not found, "\n".join(
        f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)} needs a timeout"
        for call in found
    )


@pytest.mark.parametrize(
    "source",
    [
        "ray.get(refs)",
        "ray.get(refs, timeout=None)",
        "ray.wait(refs, num_returns=2)",
        "dist.init_process_group('gloo')",
        "deepspeed.init_distributed()",
        "torch.distributed.new_group([0])",
        "subprocess.run(['ls'])",
        "process.communicate()",
        "thread.join()",
        "queue.get()",
        "queue.get(block=True)",
        "event.wait()",
        "lock.acquire()",
        "future.result()",
        "async def f():\n    await queue.get()",
        "async def f():\n    await asyncio.wait(tasks)",
        "async def f():\n    async with session.post(url) as answer: pass",
        "async def f():\n    async with asyncio.timeout(1):\n        def g(): queue.get()",
    ],
)
def test_a_bare_wait_is_found(source):
    assert list(waits_without_deadline(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "ray.get(refs, timeout=timeout_s)",
        "dist.init_process_group('gloo', timeout=timedelta(seconds=5))",
        "thread.join(timeout=5)",
        "thread.join(5)",
        "queue.get(timeout=5)",
        "settings.get('key')",
        "', '.join(parts)",
        "group.wait(5.0)",
        "session.get(url, timeout=aiohttp.ClientTimeout(5))",
        "[task.result() for task in tasks]",
        "async def f():\n    await asyncio.wait_for(queue.get(), 5)",
        "async def f():\n    async with asyncio.timeout(5):\n        await queue.get()",
        "async def f():\n    await deadline.wait(queue.get(), 5)",
    ],
)
def test_a_wait_with_a_deadline_passes(source):
    assert not list(waits_without_deadline(ast.parse(source)))
