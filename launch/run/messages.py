"""What a terminal shows of a run: the project's own words; those of its libraries go to a file.

With `--verbose` all of it is on the screen, what actors write included.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import TextIO

import rich

logger = logging.getLogger(__name__)

OWN = ("rlhf_ray", "actors", "launch")
FILE = "logs/driver.log"
# Held until the run has its folder.
HELD_CHARACTERS = 1_000_000


def show_own_logs() -> None:
    """Show what the project itself has to say; of its libraries only warnings."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for package in OWN:
        logging.getLogger(package).setLevel(logging.INFO)
    # It tells of each task that an interrupt has ended, with a traceback.
    logging.getLogger("asyncio").addFilter(_is_no_interrupt)
    # It has a handler of its own, and would say all twice.
    logging.getLogger("huggingface_hub").propagate = False


def show_everything() -> None:
    """What `--verbose` asks for."""
    for package in OWN:
        logging.getLogger(package).setLevel(logging.DEBUG)


def is_everything_shown() -> bool:
    """Whether `--verbose` was given."""
    return logger.isEnabledFor(logging.DEBUG)


@contextmanager
def libraries_to_file() -> Iterator[None]:
    """Keep what libraries log, warn of and print off the screen, but for their errors.

    It goes to `logs/driver.log` of the run that begins in the block (see `keep_in`), if there is
    anything. Logs of the project and the console of `rich` stay where they are.
    """
    if is_everything_shown():
        yield
        return
    output = _Output(sys.stderr)
    to_file = logging.StreamHandler(output)
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    to_file.addFilter(lambda record: not _is_own(record))
    root = logging.getLogger()
    shown = [handler for handler in root.handlers if isinstance(handler, logging.StreamHandler)]
    for handler in shown:
        handler.addFilter(_is_shown)
    root.addHandler(to_file)
    logging.captureWarnings(True)
    rich.reconfigure(file=sys.stdout)
    try:
        with redirect_stdout(output), redirect_stderr(output):
            yield
    except BaseException:
        output.say_where()
        raise
    finally:
        rich.reconfigure()
        logging.captureWarnings(False)
        root.removeHandler(to_file)
        for handler in shown:
            handler.removeFilter(_is_shown)


def keep_in(folder: Path) -> None:
    """Have the messages of libraries in a run's folder; one that has begun before keeps them."""
    if isinstance(sys.stderr, _Output):
        sys.stderr.keep(folder / FILE)


class _Output(io.TextIOBase):
    """Holds what is written until there is a file to append it to."""

    def __init__(self, screen: TextIO) -> None:
        self._screen = screen
        self._held = ""
        self._path: Path | None = None

    def write(self, text: str) -> int:
        self._held = (self._held + text)[-HELD_CHARACTERS:]
        if self._path is not None and self._held:
            with suppress(OSError):  # no room for what a library says is no end of a run
                self._path.parent.mkdir(exist_ok=True)
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(self._held)
            self._held = ""
        return len(text)

    def keep(self, path: Path) -> None:
        self._path = self._path or path
        self.write("")

    def say_where(self) -> None:
        """Say where it is, if there is anything."""
        if self._path is not None and self._path.exists():
            logger.info("what libraries said is in %s", self._path)

    def fileno(self) -> int:
        return self._screen.fileno()  # of who writes past Python: a crash, a signal's handler


def _is_own(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] in OWN


def _is_shown(record: logging.LogRecord) -> bool:
    return _is_own(record) or record.levelno >= logging.ERROR


def _is_no_interrupt(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], KeyboardInterrupt))
