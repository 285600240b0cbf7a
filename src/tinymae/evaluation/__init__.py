"""What was learned: probes, metrics, figures."""
