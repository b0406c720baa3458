"""lpjax: layer-parallel training of deep residual networks (arXiv:2112.05387) in JAX.

What a program needs to train a network of its own can be imported from here; see docs/own_network.md.
"""

import importlib
from typing import Any

from lpjax.version import __version__

__all__ = [
    "SOURCES",
    "Config",
    "DataConfig",
    "Unit",
    "__version__",
    "adapt",
    "configure",
    "default_config",
    "layers",
    "prepare",
    "provide_devices",
    "train",
]

_PLACES = {
    "Config": "lpjax.config.schema:Config",
    "DataConfig": "lpjax.config.schema:DataConfig",
    "SOURCES": "lpjax.data:SOURCES",
    "Unit": "lpjax.nn.chain:Unit",
    "adapt": "lpjax.nn.adapt:adapt",
    "configure": "lpjax.methods:configure",
    "default_config": "lpjax.config.load:default_config",
    "layers": "lpjax.nn.layers",
    "prepare": "lpjax.training.run:prepare",
    "provide_devices": "lpjax.parallel.platform:provide_devices",
    "train": "lpjax.training.loop:train",
}
"""Imported when asked for, so that reading a configuration does not import the whole library."""


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'lpjax' has no attribute {name!r}")
    place, _, attribute = _PLACES[name].partition(":")
    module = importlib.import_module(place)
    return getattr(module, attribute) if attribute else module
