"""A network cut into stages, its AuxNet, and how both are packed."""
