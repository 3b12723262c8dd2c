"""Tests of srnn_zoo/transforms/."""
