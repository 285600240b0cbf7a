"""`python -m tinymae COMMAND`: the same as `tinymae COMMAND`."""

from .commands.cli import main

main()
