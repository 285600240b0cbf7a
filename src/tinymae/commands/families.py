"""The families' own settings, read from their constructors: names, defaults and help texts."""

import inspect
import re
from typing import Any

from ..errors import InputError
from ..models.families import FAMILIES

OF_DATA = {"image_size", "in_channels", "mean", "std"}  # what the data say, whatever the family


def defaults_of(family: str) -> dict[str, Any]:
    """A family's own settings and their defaults."""
    parameters = inspect.signature(FAMILIES[family].__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in OF_DATA | {"self"}}


def families_with(name: str) -> list[str]:
    """The families that have a setting."""
    return [family for family in FAMILIES if name in defaults_of(family)]


def describe_setting(name: str) -> str:
    """A setting's help: what it is and its default, for each family."""
    meanings: dict[str, dict[str, list[str]]] = {}  # words -> default -> families
    for family in families_with(name):
        words, _, of_none = meaning_of(family, name).partition("; None: ")
        value = defaults_of(family)[name]
        default = of_none if value is None else show(value)
        meanings.setdefault(words, {}).setdefault(default, []).append(family)
    return "; ".join(f"{words} (default: {show_defaults(defaults)})" for words, defaults in meanings.items())


def show_defaults(families: dict[str, list[str]]) -> str:
    """Each default and the families that have it, as people read them."""
    return "; ".join(f"{', '.join(those)}: {default}" for default, those in families.items())


def meaning_of(family: str, name: str) -> str:
    """A family's words for a setting: its own, those of the class that it extends, or another family's."""
    others = [FAMILIES[other] for other in families_with(name)]
    return next(text for known in (*FAMILIES[family].__mro__, *others) if (text := docstring_line(known, name)))


def show(value: object) -> str:
    """A default as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def docstring_line(family: type, name: str) -> str | None:
    """What the `Args:` of a class's own docstring say of a setting."""
    text = inspect.cleandoc(family.__doc__ or "")
    arguments = re.split(r"\n\S|\nRaises", text.partition("Args:\n")[2])[0]
    entries = re.findall(r"^    ([\w, ]+): (.+(?:\n        .+)*)", arguments, re.MULTILINE)
    found = next((words for names, words in entries if name in names.replace(" ", "").split(",")), None)
    return None if found is None else " ".join(found.split()).rstrip(".")


def complete(family: str, given: dict[str, Any]) -> dict[str, Any]:
    """A family's settings, its defaults in place of None.

    Raises InputError for one that is given and is another family's.
    """
    defaults = defaults_of(family)
    for name, value in given.items():
        if name not in defaults and value is not None and (others := families_with(name)):
            raise InputError(f"{name} is not a setting of model {family}, but of {', '.join(others)}: leave it out")
    return {
        name: default if given[name] is None else given[name] for name, default in defaults.items() if name in given
    }
