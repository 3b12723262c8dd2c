"""Tests of srnn_zoo/cli/."""
