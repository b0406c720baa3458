"""lpjax: layer-parallel training of deep residual networks (arXiv:2112.05387) in JAX."""

__version__ = "0.1.0"
