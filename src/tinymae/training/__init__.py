"""One visible loop, and the run around it."""
