"""Tests of srnn_zoo/datasets/."""
