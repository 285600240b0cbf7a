"""Progress bars: on a terminal or in a notebook, unless TQDM_DISABLE is set."""

import os
from collections.abc import Callable, Iterable
from typing import TypeVar

from tqdm.contrib.concurrent import thread_map

Given = TypeVar("Given")
Found = TypeVar("Found")


def silenced() -> bool:
    """Whether TQDM_DISABLE is set: any value counts, as for tqdm itself."""
    return bool(os.environ.get("TQDM_DISABLE"))


def hidden(*, wanted: bool = True) -> bool | None:
    """What `tqdm` is given as `disable`: None hides a bar where there is neither a terminal nor a notebook.

    A bar there would be one endless line of a job's log. tqdm looks at TQDM_DISABLE only where `disable` is not given.
    """
    return None if wanted and not silenced() else True


def map_threads(
    function: Callable[[Given], Found], items: Iterable[Given], *, desc: str, wanted: bool = True
) -> list[Found]:
    """`function` of each item, in order, by a thread for each core, under a bar that goes away at the end."""
    cores = os.cpu_count()
    return thread_map(function, items, max_workers=cores, desc=desc, leave=False, disable=hidden(wanted=wanted))
