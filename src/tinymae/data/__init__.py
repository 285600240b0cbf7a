"""Images, their splits, and seeded batches of them."""
