"""What a step takes: seconds, bytes and memory, predicted or measured."""
