"""Claims about a study's outcome, written down before the runs and answered by them."""
