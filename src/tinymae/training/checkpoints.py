"""The checkpoints of a run: written whole, checked when they are read."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from ..errors import Diverged, first_line, refusal
from ..files import file_digest, write_atomically

KEPT = 2


class Checkpoints:
    """Files `step-000000120-DIGEST.pt`, the last two of a run.

    Args:
        folder: where they are.
        say: prints a line for the user.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]):
        self.folder, self.say = folder, say

    @property
    def files(self) -> list[Path]:
        """The files, the newest last."""
        return sorted(self.folder.glob("step-*.pt"))

    @property
    def last(self) -> Path | str:
        """The newest file, for messages."""
        return self.files[-1] if self.files else "none yet"

    def load(self) -> dict | None:
        """The last good state, on the CPU, or None. A damaged one is named and the one before it is used."""
        for path in reversed(self.files):
            if not is_intact(path):
                self.say(f"checkpoint {path} is damaged (its content does not match its name): trying the one before")
                continue
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.say(f"resuming from {path}")
            return state
        return None

    def save(self, state: dict, *, step: int) -> None:
        """Write a state beside the others, then drop all but the last two.

        Raises Diverged for a state that is not finite, InputError if there is no room for it.
        """
        if name := find_infinite(state):
            raise Diverged(f"{name} is not finite at step {step}; last good checkpoint: {self.last}. {REMEDY}")
        stem = f"step-{step:09d}"
        try:
            write_atomically(
                self.folder / f"{stem}.pt", lambda beside: torch.save(state, beside),
                name=lambda beside: f"{stem}-{file_digest(beside)}.pt",
            )  # fmt: skip
        except (OSError, RuntimeError) as error:
            raise refusal(
                error,
                f"the checkpoint of step {step} could not be written ({self.find_cause(error, state)}); the last good "
                f"one is {self.last}. Make room on the disk, then repeat the command: it resumes",
            ) from None
        for old in self.files[:-KEPT]:
            old.unlink()

    def find_cause(self, error: Exception, state: dict) -> str:
        """Why a state could not be written, in words: of a full disk torch says "unexpected pos 1931200"."""
        try:
            needed, free = size_of(state), shutil.disk_usage(self.folder).free
        except OSError:  # the folder itself is not there
            return first_line(error)
        if needed < free:
            return first_line(error)
        return f"no space left on the disk of {self.folder}, it needs {needed / 1e6:.1f} MB"


REMEDY = "Try a lower --base-lr, a longer warm-up or --clip-grad 1"


def find_infinite(state: object, name: str = "state") -> str | None:
    """The name of a tensor with a value that is not finite, anywhere in nested dictionaries and lists; or None."""
    if isinstance(state, Tensor):
        return None if not state.is_floating_point() or bool(state.isfinite().all()) else name
    return next((found for key, value in items_of(state) if (found := find_infinite(value, f"{name}.{key}"))), None)


def size_of(state: object) -> int:
    """The bytes of all tensors in nested dictionaries and lists.

    >>> size_of({"step": 3, "model": {"weight": torch.zeros(2, 2)}, "moments": [torch.zeros(2), None]})
    24
    """
    return state.nbytes if isinstance(state, Tensor) else sum(size_of(value) for _, value in items_of(state))


def items_of(state: object) -> Iterable[tuple]:
    """What is in a dictionary or list, by its key or place; of anything else nothing."""
    return state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list | tuple) else ()


def is_intact(path: Path) -> bool:
    """Whether a file's content has the checksum that its name ends in: torch.load does not notice a flipped bit."""
    return file_digest(path) == path.stem.rsplit("-", 1)[-1]
