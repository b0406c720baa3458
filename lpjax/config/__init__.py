"""What a user can write, how it is read, and whether it can be run."""
