"""Data sets and how they reach a step."""

from lpjax.data.digits import digits
from lpjax.data.source import Dataset, Source

SOURCES: dict[str, Source] = {source.name: source for source in (digits,)}
"""What `config.data.name` can be."""

__all__ = ["SOURCES", "Dataset", "Source"]
