"""Chains of units, layers, losses, and what they cost."""
