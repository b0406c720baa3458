"""Steps on machines one does not have, by the cost model."""
