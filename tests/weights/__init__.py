"""Tests of srnn_zoo/weights/."""
