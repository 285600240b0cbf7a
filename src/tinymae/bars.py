"""Progress bars: on a terminal or in a notebook, unless TQDM_DISABLE is set."""

import os


def silenced() -> bool:
    """Whether TQDM_DISABLE is set: any value counts, as for tqdm itself."""
    return bool(os.environ.get("TQDM_DISABLE"))


def hidden(*, wanted: bool = True) -> bool | None:
    """What `tqdm` is given as `disable`: None hides a bar where there is neither a terminal nor a notebook.

    A bar there would be one endless line of a job's log. tqdm looks at TQDM_DISABLE only where `disable` is not given.
    """
    return None if wanted and not silenced() else True
