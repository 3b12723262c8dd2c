"""Tests of srnn_zoo/inference/."""
