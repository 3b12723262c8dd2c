"""The tests, as a package so that they can share what conftest.py defines."""
