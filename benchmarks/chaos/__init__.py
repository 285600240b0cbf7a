"""The chaos benchmark: see `__main__`."""
