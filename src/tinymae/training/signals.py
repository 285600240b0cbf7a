"""Ctrl-C and SIGTERM as a request to stop after the step."""

import signal
import threading


class StopSignals:
    """While entered, the first SIGTERM or SIGINT is noted in `code` (128 + its number); a second one acts as before.

    In other threads than the main one, which Python keeps signals from, nothing is caught.
    """

    def __init__(self):
        self.code: int | None = None
        self.before: dict = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGTERM, signal.SIGINT)
            self.before = {number: signal.signal(number, self.note) for number in numbers}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def note(self, number: int, frame) -> None:
        """The handler."""
        if self.code is not None:
            self.__exit__()
            signal.raise_signal(number)
        self.code = 128 + number
