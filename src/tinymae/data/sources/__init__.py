"""Where images come from: one reader for each kind of storage, all with the interface of `Source`."""
