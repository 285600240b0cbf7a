"""timm's models, by name: those alone that it has built in."""

from typing import Any

import timm

from ..errors import InputError, first_line, refusal


def create_timm(name: str, what: str, **arguments) -> Any:
    """A timm model with random weights.

    Raises InputError unless `name` is one that the installed timm has built in, and where it "cannot be built WHAT".
    Other names could ask the network or run a file: "hf-hub:...", "local-dir:...".
    """
    if not timm.is_model(name) or ":" in name or "/" in name:
        close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*tiny*")[:3])
        raise InputError(f"encoder {name!r} is not a timm model" + (f"; there are {close}" if close else ""))
    try:
        return timm.create_model(name, pretrained=False, **arguments)
    except (ArithmeticError, AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise refusal(error, f"encoder {name!r} cannot be built {what}: {first_line(error)}") from None
