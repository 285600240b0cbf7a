"""Many runs: comparisons, searches, reports."""
