"""Tests of srnn_zoo/models/."""
