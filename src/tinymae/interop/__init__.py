"""Other programs' weights and formats."""
