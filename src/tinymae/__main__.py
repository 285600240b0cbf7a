"""`python -m tinymae COMMAND`: the same as `tinymae COMMAND`."""

from .commands.cli import main

if __name__ == "__main__":
    main()
