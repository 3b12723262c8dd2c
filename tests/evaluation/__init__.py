"""Tests of srnn_zoo/evaluation/."""
