"""The version of lpjax."""

__version__ = "0.1.0"
