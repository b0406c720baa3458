"""Devices: the mesh, exchanges between stages, processes."""
