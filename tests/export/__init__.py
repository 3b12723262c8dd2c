"""Tests of srnn_zoo/export/."""
