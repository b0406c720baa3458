"""Seconds, memory and rates that are measured on this machine."""
