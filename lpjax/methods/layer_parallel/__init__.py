"""Layer-parallel training with an AuxNet (arXiv:2112.05387)."""
