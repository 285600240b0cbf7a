"""Ctrl-C and SIGTERM: while steps run a request to stop after the step, elsewhere in a command an exception."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any


def handle(handler: Callable[[int, Any], None]) -> dict:
    """Let a function handle both signals; what handled them before, for `put_back`.

    In other threads than the main one, which Python keeps signals from, nothing is caught.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}


def put_back(before: dict) -> None:
    """Let the signals be handled as they were."""
    for number, handler in before.items():
        signal.signal(number, handler)


SAME = 1.0  # seconds within which a launcher signals a process twice, as itself and as one of its group


class StopSignals:
    """Between `catch` and `let_go` the first SIGTERM or SIGINT is noted in `code` (128 + its number). Another acts as
    before, if it comes more than a second later.
    """

    def __init__(self):
        self.code: int | None = None
        self.noted_at = 0.0
        self.before: dict = {}

    def catch(self) -> None:
        """Begin to note signals, unless that has begun."""
        self.before = self.before or handle(self.note)

    def let_go(self) -> None:
        """Let signals act as they did."""
        put_back(self.before)
        self.before = {}

    def note(self, number: int, frame) -> None:
        """The handler."""
        if self.code is None:
            self.code, self.noted_at = 128 + number, time.monotonic()
        elif time.monotonic() - self.noted_at > SAME:
            self.let_go()
            signal.raise_signal(number)


class Interrupted(KeyboardInterrupt):
    """A signal came, anywhere. Its `number` is the signal's."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


@contextlib.contextmanager
def interrupting() -> Iterator[None]:
    """While entered, SIGTERM and SIGINT raise Interrupted, so that what is open is closed."""

    def interrupt(number: int, frame) -> None:
        raise Interrupted(number)

    before = handle(interrupt)
    try:
        yield
    finally:
        put_back(before)
