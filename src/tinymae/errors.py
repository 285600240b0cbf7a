"""Errors that tell the user what to do."""


class InputError(ValueError):
    """Something the user gave cannot work. The message is one line: the argument, its value and the remedy.

    Scripts print it and exit with code 2, without a traceback.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))  # a name out of a file may have several


def first_line(error: BaseException) -> str:
    """What another library's error says first, or its type: the rest may be a stack trace."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
