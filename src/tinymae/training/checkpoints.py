"""The checkpoints of a run: written whole, checked when they are read."""

import contextlib
import shutil
from collections.abc import Callable
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
            if file_digest(path) != path.stem.rsplit("-", 1)[-1]:  # torch.load does not notice a flipped bit
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
                f"the checkpoint of step {step} could not be written ({self.find_cause(error)}); the last good "
                f"one is {self.last}. Make room on the disk, then repeat the command: it resumes",
            ) from None
        for old in self.files[:-KEPT]:
            old.unlink()

    def find_cause(self, error: Exception) -> str:
        """What was said, and how much room there is: of a full disk torch says "unexpected pos 1931200"."""
        with contextlib.suppress(OSError):  # the folder itself is not there
            return f"{first_line(error)}; {shutil.disk_usage(self.folder).free / 1e6:.1f} MB are free on its disk"
        return first_line(error)


REMEDY = "Try a lower --base-lr, a longer warm-up or --clip-grad 1"


def find_infinite(state: object, name: str = "state") -> str | None:
    """The name of a tensor with a value that is not finite, anywhere in nested dictionaries and lists; or None."""
    if isinstance(state, Tensor):
        return None if not state.is_floating_point() or bool(state.isfinite().all()) else name
    inside = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list | tuple) else ()
    return next((found for key, value in inside if (found := find_infinite(value, f"{name}.{key}"))), None)
