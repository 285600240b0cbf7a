"""Errors that tell the user what to do."""


class InputError(ValueError):
    """Something the user gave cannot work. The message is one line: the argument, its value and the remedy.

    Scripts print it and exit with code 2, without a traceback.
    """
