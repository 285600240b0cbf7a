"""What was learned: probes, metrics, pictures."""
