"""Test accuracy of methods on one network and data set, seeds and all."""
