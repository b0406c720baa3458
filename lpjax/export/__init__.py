"""A trained network as a model that can be used without lpjax."""
