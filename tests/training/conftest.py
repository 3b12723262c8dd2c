"""What several test files of training share."""

import pytest


@pytest.fixture
def no_curves(monkeypatch):
    """Runs draw nothing, which takes longer than their epochs; other tests look at curves.png."""
    monkeypatch.setattr("srnn_zoo.training.run_folder._plot_log", lambda history, task, file: file.touch())
