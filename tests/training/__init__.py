"""Tests of srnn_zoo/training/."""
