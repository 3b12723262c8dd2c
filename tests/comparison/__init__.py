"""Tests of `srnn_zoo.comparison`."""
