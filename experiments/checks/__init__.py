"""Properties that every release must have: the same numbers on every mesh, and after every interruption."""
