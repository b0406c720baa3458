"""A run: its loop, tests, checkpoints and log."""
