"""The program that becomes a sandbox: it takes everything from itself, then runs the code.

Run as a script, with nothing but Python's own library, by `rlhf_ray/sandbox/run.py`, which explains
the whole. Three processes: the first stays outside and maps user ids; the second makes namespaces;
the third is the first process of its own process namespace, prepares files and limits, starts the
code as a fourth without any rights, and watches over its memory. When it ends, the kernel ends all
that is left in there.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

# Of <sched.h>, <sys/mount.h>, <sys/prctl.h>.
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 2, 4, 4096, 16384, 1 << 18, 2
# Of <linux/mount.h>, for a mount and all below it.
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, AT_RECURSIVE, AT_FDCWD = 1, 2, 4, 0x8000, -100
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
# Whom the code is, inside and, where root starts it, outside: the user that owns nothing.
CODE_ID, NOBODY = 1000, 65534
WATCH_S = 0.02
# For all processes of a run to be ended by the kernel, on a busy machine.
END_S = 30.0
HOME = "/sandbox"
# Where the new root is put together: the first that holds nothing which is to be shown.
ROOTS = ("/mnt", "/tmp", "/run", "/var/tmp")
# Those of all machines, or by the machine: the C library has no functions for these.
NUMBERS = {"mount_setattr": 442, "pivot_root": {"x86_64": 155, "aarch64": 41}}
# Read-only, where they are there; links stay links.
SYSTEM = (
    "/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin",
    "/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives",
)  # fmt: skip
DEVICES = ("null", "zero", "full", "random", "urandom")

_libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """The machine does not give a protection; the message names it."""


def main() -> None:
    """Read a job from stdin, run it, and write how it ended to the file descriptor of argv."""
    status = int(sys.argv[1])
    os.set_inheritable(status, False)  # the code must not say itself how it ended
    # Whoever waits for a child hears of its end at once, and not for longer than it may take.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    job = json.loads(sys.stdin.buffer.read())
    try:
        ended = _outside(job)
    except Refused as refusal:
        ended = {"refused": str(refusal)}
    os.write(status, json.dumps(ended).encode())


def _outside(job: dict[str, Any]) -> dict[str, Any]:
    """Fork the second process, map its ids, and hear from the third."""
    asks, asked = os.pipe()
    hears, tells = os.pipe()
    answers, mapped = os.pipe()
    child = os.fork()
    # Who waits for another's word must not hold the pipe open itself.
    for end in (asks, hears, mapped) if child == 0 else (asked, tells, answers):
        os.close(end)
    if child == 0:
        _never_return(lambda: _second(job, asked, answers, tells), tells)
    if os.read(asks, 1):
        with _step("mapping user ids"):
            _map_ids(child)
        os.write(mapped, b"m")
    with os.fdopen(hears, "rb") as answer:
        said = answer.read()
    _wait_for(child, job["wall_s"] + END_S)
    if not said:
        raise Refused("the sandbox ended without a word")
    ended: dict[str, Any] = json.loads(said)
    return ended


def _second(job: dict[str, Any], asked: int, answers: int, tells: int) -> None:
    """Leave all namespaces of the machine, and fork the third process."""
    for flag, name in (
        (CLONE_NEWUSER, "user"), (CLONE_NEWNS, "mount"), (CLONE_NEWPID, "process"),
        (CLONE_NEWNET, "network"), (CLONE_NEWIPC, "shared memory"), (CLONE_NEWUTS, "host name"),
    ):  # fmt: skip
        with _step(f"a {name} namespace"):
            _call("unshare", flag)
        if flag == CLONE_NEWUSER:
            os.write(asked, b"u")
            if not os.read(answers, 1):
                os._exit(1)  # the first process has said why
            _end_with_parent()  # other rights take this away, so it comes behind them
    child = os.fork()
    if child == 0:
        _never_return(lambda: _third(job, tells), tells)
    os.close(tells)
    _wait_for(child, job["wall_s"] + END_S)


def _map_ids(child: int) -> None:
    """Inside, 0 prepares and `CODE_ID` runs the code; where root starts it, the latter is nobody.

    Only root may map two. Else the code runs as 0, whose rights are taken from it all the same.
    """
    uid, gid = os.geteuid(), os.getegid()
    process = Path(f"/proc/{child}")
    if uid != 0:
        (process / "setgroups").write_text("deny")
    for name, own in (("uid_map", uid), ("gid_map", gid)):
        more = f"\n{CODE_ID} {NOBODY} 1" if uid == 0 else ""
        (process / name).write_text(f"0 {own} 1{more}\n")


def _third(job: dict[str, Any], tells: int) -> None:
    """Prepare files, start the code, watch it, and say how it ended."""
    _end_with_parent()
    _prepare_files(job)
    with _step("forbidding further user namespaces"):
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
    with _step("hiding the watcher from the code"):
        _call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
    hears, refuses = os.pipe()
    os.set_inheritable(refuses, False)
    code = os.fork()
    if code == 0:
        os.close(tells)
        _never_return(lambda: _become_code(job), refuses)
    os.close(refuses)
    with os.fdopen(hears, "rb") as refusal:
        said = refusal.read()  # nothing once the code has begun
    ended = json.loads(said) if said else _watch(code, job["memory_bytes"], job["wall_s"])
    os.write(tells, json.dumps(ended).encode())


def _prepare_files(job: dict[str, Any]) -> None:
    """A root of its own: the system and Python read-only, a home in memory, nothing else."""
    python = [Path(path) for path in job["python"]]
    with _step("a file system of its own"):
        new = _unused_folder(python)
        _call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
        size = f"size={job['disk_bytes']},nr_inodes=16384,mode=755".encode()
        _call("mount", b"tmpfs", os.fsencode(new), b"tmpfs", MS_NOSUID | MS_NODEV, size)
    with _step("the system's files, read-only"):
        for path in map(Path, SYSTEM):
            _show(path, new, keeps_link=True)
        for path in python:
            _show(path, new, keeps_link=not path.is_dir())
        (new / "dev").mkdir()
        for name in DEVICES:
            _bind(Path("/dev") / name, new / "dev" / name)
    for name in ("tmp", "dev/shm", HOME[1:]):
        (new / name).mkdir(exist_ok=True)  # Python may be below one
        (new / name).chmod(0o777)
    (new / "proc").mkdir()
    with _step("a list of its own processes alone (/proc)"):
        place = os.fsencode(new / "proc")
        _call("mount", b"proc", place, b"proc", MS_NOSUID | MS_NODEV, None)
    (new / "old").mkdir()
    with _step("leaving the machine's files"):
        os.chdir(new)
        _call_number("pivot_root", b".", b"old")
        os.chdir("/")
        _call("umount2", b"/old", MNT_DETACH)
        os.rmdir("/old")
    for name, text in job["files"].items():
        place = Path(HOME) / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8", errors="surrogatepass")
    os.chdir(HOME)


def _unused_folder(python: list[Path]) -> Path:
    used = [*python, *(path.resolve() for path in python)]
    for root in map(Path, ROOTS):
        if root.is_dir() and not any(path.is_relative_to(root) for path in used):
            return root
    raise ValueError(f"one of {', '.join(ROOTS)} must be there, and Python in none of them")


def _show(path: Path, new: Path, *, keeps_link: bool = False) -> None:
    """A file or folder of the machine in the new root, read-only and where it was.

    Of a link there is what it leads to, which may be a place that is not shown.
    """
    target = new / path.relative_to("/")
    if not path.exists() or os.path.lexists(target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if keeps_link and path.is_symlink():
        target.symlink_to(path.readlink())
        return
    _bind(path, target)
    attributes = struct.pack("=4Q", ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV, 0, 0, 0)
    place, size = os.fsencode(target), len(attributes)
    _call_number("mount_setattr", AT_FDCWD, place, AT_RECURSIVE, attributes, size)


def _bind(path: Path, target: Path) -> None:
    if path.is_dir():
        target.mkdir(exist_ok=True)
    else:
        target.touch()
    _call("mount", os.fsencode(path), os.fsencode(target), None, MS_BIND | MS_REC, None)


def _become_code(job: dict[str, Any]) -> NoReturn:
    """Give up all rights, set limits, and run the code in this process."""
    with _step("giving up rights"):
        if os.getuid() == 0 and _has(CODE_ID):
            os.setgroups([])
            os.setresgid(CODE_ID, CODE_ID, CODE_ID)
            os.setresuid(CODE_ID, CODE_ID, CODE_ID)
        for capability in range(64):
            # Those that this kernel does not know are refused; without rights, all are.
            _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
        _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    with _step("limits"):
        for kind, most in (
            (resource.RLIMIT_NPROC, job["processes"]),
            (resource.RLIMIT_AS, job["memory_bytes"]),
            (resource.RLIMIT_CPU, job["cpu_s"]),
            (resource.RLIMIT_FSIZE, job["disk_bytes"]),
            (resource.RLIMIT_NOFILE, 256),
            (resource.RLIMIT_CORE, 0),
        ):
            resource.setrlimit(kind, (most, most))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    given = os.open(job["stdin"], os.O_RDONLY)
    os.dup2(given, 0)
    os.setsid()
    os.execve(job["command"][0], job["command"], job["environment"])


def _has(uid: int) -> bool:
    """Whether a user exists inside."""
    lines = Path("/proc/self/uid_map").read_text().splitlines()
    return any(line.split()[0] == str(uid) for line in lines)


def _watch(code: int, memory_bytes: int, wall_s: float) -> dict[str, Any]:
    """Until the code ends or takes too much; what it left running ends with this process."""
    started_s = time.monotonic()
    while True:
        process, status = os.waitpid(-1, os.WNOHANG)  # one that lost its parent, perhaps
        if process == code:
            exited = os.WIFEXITED(status)
            number = os.WEXITSTATUS(status) if exited else os.WTERMSIG(status)
            return {"ending": "exit" if exited else "signal", "status": number}
        if _resident_bytes() > memory_bytes:
            return {"ending": "memory", "status": None}
        if time.monotonic() - started_s > wall_s:
            return {"ending": "timeout", "status": None}
        if not process:
            signal.sigtimedwait([signal.SIGCHLD], WATCH_S)


def _resident_bytes() -> int:
    """Memory of all processes in here but this one."""
    pages = 0
    for name in os.listdir("/proc"):
        if name.isdigit() and name != "1":
            try:
                text = Path(f"/proc/{name}/statm").read_text()
            except OSError:
                continue  # it has ended
            pages += int(text.split()[1])
    return pages * resource.getpagesize()


def _wait_for(child: int, most_s: float) -> None:
    """Until the child has ended; one that is late ends with this process."""
    ends_s = time.monotonic() + most_s
    while not os.waitpid(child, os.WNOHANG)[0]:
        left_s = ends_s - time.monotonic()
        if left_s <= 0:
            return
        signal.sigtimedwait([signal.SIGCHLD], left_s)


def _end_with_parent() -> None:
    _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _never_return(work: Callable[[], object], tells: int) -> NoReturn:
    """Do a forked process's work; what is refused is said to the process before it."""
    try:
        work()
        os._exit(0)
    except Refused as refusal:
        os.write(tells, json.dumps({"refused": str(refusal)}).encode())
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
        os.write(tells, json.dumps({"refused": said}).encode())
    os._exit(1)


class _step:
    """What is done inside is named where it is refused."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        """Nothing."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Name it."""
        if isinstance(error, OSError | ValueError):
            raise Refused(f"{self.name}: {error}") from error


def _call(name: str, *arguments: Any) -> None:
    """A function of the C library that returns 0 or sets an error."""
    given = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    if getattr(_libc, name)(*given) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _call_number(name: str, *arguments: Any) -> None:
    """A system call that the C library has no function for."""
    number: Any = NUMBERS[name]
    if isinstance(number, dict):
        number = number.get(os.uname().machine)
    if number is None:
        raise ValueError(f"the number of {name} is not known for {os.uname().machine}")
    _call("syscall", number, *arguments)


if __name__ == "__main__":
    main()
