"""What commands give back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

M = TypeVar("M")


@dataclass(frozen=True, repr=False)
class Result(Generic[M]):
    """What a command gives back."""

    model: M  # in evaluation mode
    results: dict  # as in results.json
    folder: Path  # the output folder

    def __repr__(self) -> str:  # one line, while results hold tables of all classes
        of = "" if self.model is None else f" of a {type(self.model).__name__}"
        numbers = [
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.results.items()
            if isinstance(value, int | float)
        ]
        return f"Result{of} in {self.folder}: {', '.join(numbers) or 'see .results'}"
