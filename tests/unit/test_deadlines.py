"""No wait without a deadline: a walk over the syntax tree of every module.

What the tree shows is a call by name, so the rules are about names. An `await` of a Ray reference
looks like any other: for those `actors.cluster.deadline` is the one place that waits.
"""

import ast
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = [path for top in ("rlhf_ray", "actors", "launch") for path in (ROOT / top).rglob("*.py")]

# Calls that wait, whatever their arguments, unless `timeout` is one of them.
ALWAYS_WAIT = {
    *("ray.get", "ray.wait", "asyncio.wait", "asyncio.as_completed"),
    *("asyncio.to_thread", "in_daemon_thread", "input", "signal.pause", "signal.sigwait"),
    *("subprocess.run", "subprocess.call", "subprocess.check_call", "subprocess.check_output"),
    *("os.wait", "os.waitpid", "psutil.wait_procs", "select.select"),
    *("urllib.request.urlopen", "urlopen", "socket.create_connection"),
    *(f"requests.{method}" for method in ("get", "post", "put", "delete", "request")),
    *(f"session.{method}" for method in ("get", "post", "put", "request", "ws_connect")),
}
# The same for a method or function of any object: `dist.init_process_group`, `process.communicate`.
ALWAYS_WAIT_AS_METHOD = {
    *("init_process_group", "init_distributed", "new_group", "communicate", "monitored_barrier"),
    *("run_in_executor", "wait_closed", "readline", "readexactly", "recv", "accept"),
}
# These wait when called without an argument; `d.get(key)` and `", ".join(parts)` have one.
WAIT_WITHOUT_ARGUMENTS = {"get", "join", "wait", "acquire", "result", "exception"}
# As an argument of those these say to wait, and not until when.
NO_DEADLINE = (None, True)
# On an asyncio task, which our code calls `task`, these raise instead of waiting.
ASK_A_FINISHED_TASK = {"result", "exception"}
BLOCKING_KEYWORDS = {"block", "blocking"}
# Whatever is made by these is waited for where a `with` enters it.
LOCKS = {"Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition"}
# At the end of their `with`. What threads wait for is seen where they do; a process may also hang.
PROCESSES = {"ProcessPoolExecutor", "Pool", "Popen"}
# A file on a disk, which our code calls `file`, has a line or ends.
FILE, READ_A_LINE = "file", "readline"
# vLLM's engine, which our code calls `engine`, waits for its processes in every call.
ENGINE = "engine"
# What is awaited inside these has their deadline, unless that is None.
DEADLINE_CALLS = {
    *("asyncio.wait_for", "asyncio.timeout", "asyncio.timeout_at", "deadline", "in_thread"),
}


def waits_without_deadline(tree: ast.AST, locks: Collection[str] = ()) -> Iterator[ast.AST]:
    """What may wait forever; `locks` are names of locks that other modules make."""
    known = {*locks, *names_of_locks(tree)}
    stack: list[tuple[ast.AST, bool]] = [(tree, False)]
    while stack:
        node, covered = stack.pop()
        if isinstance(node, ast.Call):
            if not covered and _waits(node) and not _has_timeout(node):
                yield node
            covered = covered or _is_deadline(node)
        if isinstance(node, ast.Await) and not covered and _asks_engine(node.value):
            yield node
        if isinstance(node, ast.With | ast.AsyncWith):
            # Those that come first cover those that are entered after them.
            for item in node.items:
                if not covered and _is_lock(item.context_expr, known):
                    yield item.context_expr
                covered = covered or _is_deadline(item.context_expr)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            covered = False  # its body runs at another time
        stack += [(child, covered) for child in ast.iter_child_nodes(node)]


def names_of_locks(tree: ast.AST) -> Iterator[str]:
    """Variables and attributes that are given a lock, or declared to be one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            said = (
                [node.value, node.annotation] if isinstance(node, ast.AnnAssign) else [node.value]
            )
            if any(part is not None and _names(part) & LOCKS for part in said):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                yield from (_last_name(target) for target in targets)


def _names(node: ast.AST) -> set[str]:
    return {_last_name(part) for part in ast.walk(node)}


def _last_name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _is_lock(entered: ast.AST, known: Collection[str]) -> bool:
    if isinstance(entered, ast.Call):
        return bool(_names(entered.func) & (LOCKS | PROCESSES))
    if isinstance(entered, ast.Subscript):  # one of several by name
        return _is_lock(entered.value, known)
    name = _last_name(entered)
    return name in known or name.rpartition("_")[2] in ("lock", "locks", "semaphore", "mutex")


def _asks_engine(awaited: ast.AST) -> bool:
    return (
        isinstance(awaited, ast.Call)
        and isinstance(awaited.func, ast.Attribute)
        and _last_name(awaited.func.value) == ENGINE
    )


def _waits(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    if name in ALWAYS_WAIT:
        return not any(ast.unparse(argument) == "os.WNOHANG" for argument in call.args)
    if name == f"{FILE}.{READ_A_LINE}":
        return False
    if name.rpartition(".")[2] in ALWAYS_WAIT_AS_METHOD:
        return True
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if "cancel_futures" in keywords:  # an executor's `shutdown`
        return not _is_constant(keywords.get("wait"), (False,))
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in WAIT_WITHOUT_ARGUMENTS:
        return False
    if call.func.attr in ASK_A_FINISHED_TASK and _is_task(call.func.value):
        return False
    if any(_is_constant(keywords.get(name), (False,)) for name in BLOCKING_KEYWORDS):
        return False
    bare = not call.args or (len(call.args) == 1 and _is_constant(call.args[0], NO_DEADLINE))
    return bare and keywords.keys() <= BLOCKING_KEYWORDS | {"timeout"}


def _is_task(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id.rpartition("_")[2] == "task"


def _is_constant(node: ast.AST | None, values: tuple[object, ...]) -> bool:
    return isinstance(node, ast.Constant) and any(node.value is value for value in values)


def _has_timeout(call: ast.Call) -> bool:
    given = [keyword.value for keyword in call.keywords if keyword.arg == "timeout"]
    return any(not _is_constant(value, (None,)) for value in given)


def _is_deadline(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call) or ast.unparse(node.func) not in DEADLINE_CALLS:
        return False
    given = [*node.args, *(keyword.value for keyword in node.keywords)]
    return bool(given) and not any(_is_constant(value, (None,)) for value in given)


LOCKS_OF_ALL_MODULES = {
    name for path in MODULES for name in names_of_locks(ast.parse(path.read_text(), str(path)))
}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_wait_has_a_deadline(path):
    tree = ast.parse(path.read_text(), str(path))
    found = list(waits_without_deadline(tree, LOCKS_OF_ALL_MODULES))
    assert not found, "\n".join(
        f"{path.relative_to(ROOT)}:{wait.lineno}: {ast.unparse(wait)} needs a deadline"
        for wait in found
    )


def test_the_walk_meets_the_modules_and_their_locks():
    assert {"rlhf_ray", "actors", "launch"} == {path.relative_to(ROOT).parts[0] for path in MODULES}
    assert len(MODULES) > 200
    assert "scheduler" in LOCKS_OF_ALL_MODULES


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
        "lock.acquire(True)",
        "lock.acquire(blocking=True)",
        "thread.join(None)",
        "queue.get(True)",
        "event.wait(timeout=None)",
        "process.wait()",
        "os.waitpid(pid, 0)",
        "process.stdout.readline()",
        "requests.get(url)",
        "with lock: pass",
        "with self.locks[name]: pass",
        "turns = threading.Condition()\nwith turns: pass",
        "class A:\n    held: asyncio.Lock | None = None\n    async def f(self):\n"
        "        async with self.held: pass",
        "self.scheduler = asyncio.Semaphore(3)\n"
        "async def f():\n    async with self.scheduler: pass",
        "async def f():\n    async with asyncio.Lock(): pass",
        "with ProcessPoolExecutor(4) as processes: pass",
        "pool.shutdown(cancel_futures=True)",
        "async def f():\n    await asyncio.to_thread(work)",
        "async def f():\n    await in_daemon_thread(work)",
        "async def f():\n    await loop.run_in_executor(None, work)",
        "async def f():\n    await self.engine.pause_generation(mode='keep')",
        "async def f():\n    await engine.generate(requests)",
        "async def f():\n    async with lock, asyncio.timeout(1): pass",
        "async def f():\n    async with asyncio.timeout(None): await queue.get()",
        "async def f():\n    await asyncio.wait_for(queue.get(), timeout=None)",
        "def f():\n    condition.wait_for(lambda: queue.get())",
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
        "os.waitpid(pid, os.WNOHANG)",
        "dist.init_process_group('gloo', timeout=timedelta(seconds=5))",
        "thread.join(timeout=5)",
        "thread.join(5)",
        "queue.get(timeout=5)",
        "settings.get('key')",
        "', '.join(parts)",
        "group.wait(5.0)",
        "session.get(url, timeout=aiohttp.ClientTimeout(5))",
        "[task.result() for task in tasks]",
        "lock.acquire(timeout=5)",
        "lock.acquire(blocking=False)",
        "record.acquire(wanted, running)",
        "pool.shutdown(wait=False, cancel_futures=True)",
        "with open(path) as file: pass",
        "file.readline(1024)",
        "with self.clock.phase('update'): pass",
        "async def f():\n    async with asyncio.timeout(1), lock: pass",
        "async def f():\n    async with deadline(1, actor='a', operation='b'), lock: pass",
        "async def f():\n    async with deadline(1, actor='a', operation='b'):\n"
        "        await self.engine.sleep(level=1)",
        "async def f():\n    await in_thread(work, timeout_s=1, actor='a', operation='b')",
        "self.engine.shutdown()",
        "async def f():\n    await asyncio.wait_for(queue.get(), 5)",
        "async def f():\n    async with asyncio.timeout(5):\n        await queue.get()",
        "async def f():\n    async with deadline(5, actor='a', operation='b'): await queue.get()",
    ],
)
def test_a_wait_with_a_deadline_passes(source):
    assert not list(waits_without_deadline(ast.parse(source)))
