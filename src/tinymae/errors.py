"""Errors that tell the user what to do."""

import difflib
import errno
import re
import signal
import sys
import warnings
from collections.abc import Iterable, Sequence

PAUSED = 75  # the exit code of --pause-after-minutes: sysexits.h's "try again later"
BETWEEN = ("tinymae", "torch", "sklearn")  # packages whose lines may lie between a user's and ours
# How CUDA, its libraries, torch's allocator on a CPU, C++ and oneDNN say it; that oneDNN could not create "a primitive
# descriptor" means that it cannot compute such a thing at all.
OUT_OF_MEMORY = (
    r"out of memory|ALLOC_FAILED|can't allocate memory|bad_alloc|could not create a (memory object|primitive)$"
)


class InputError(ValueError):
    """Something the user gave cannot work. The message is one line: the argument, its value and the remedy.

    Scripts print it and exit with code 2, without a traceback.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))  # a name out of a file may have several


class Diverged(InputError):
    """A loss, a gradient or a weight is no longer finite. A search can go on; a single run cannot."""


class Stopped(KeyboardInterrupt):
    """The run was told to stop, and its state was saved: the same command or call resumes.

    As a KeyboardInterrupt it is no Exception: a loop over runs that goes on after errors does not go on after Ctrl-C.
    A command exits with 128 + the signal's number after SIGTERM or SIGINT, with PAUSED after --pause-after-minutes.
    """

    def __init__(self, exit_code: int, step: int):
        reason = "paused" if exit_code == PAUSED else f"stopped by {signal.Signals(exit_code - 128).name}"
        super().__init__(f"{reason} after step {step}; the same command resumes")
        self.exit_code, self.step = exit_code, step

    def __reduce__(self):  # from a pool of processes
        return type(self), (self.exit_code, self.step)


def warn(message: str) -> None:
    """A warning that points at the user's own line: the first that is neither ours nor of a library that calls us."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def first_line(error: BaseException) -> str:
    """What another library's error says first, or its type: the rest may be a stack trace."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def list_some(names: Sequence[str], most: int = 5) -> str:
    """Names, some of many.

    >>> list_some(["cat", "dog", "fox"], most=2)
    'cat, dog, ...'
    """
    return ", ".join(names[:most]) + ", ..." * (len(names) > most)


def refusal(error: BaseException, message: str) -> BaseException:
    """What to raise for another library's error: an InputError of this message, or, as memory that ran out says nothing
    about what was given, the error itself.
    """
    return error if ran_out_of_memory(error) else InputError(message)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error is a GPU's, Python's or a CPU's way to say that an allocation failed."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and bool(re.search(OUT_OF_MEMORY, str(error).strip()))


def did_you_mean(given: Iterable[str], known: Iterable[str]) -> str:
    """A question after a message, where words that are unknown resemble known ones; else nothing.

    >>> did_you_mean(["--image_size"], ["--data", "--image-size"])
    '; did you mean --image-size?'
    """
    close = [near for word in given for near in difflib.get_close_matches(word, list(known), 1)]
    return f"; did you mean {' and '.join(close)}?" if close else ""
