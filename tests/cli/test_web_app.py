"""The command `srnn-zoo app`."""

import sys

import pytest

from .command import refused, run


def test_the_app_is_served_for_the_model_and_where_it_was_told(place, monkeypatch):
    served = []
    monkeypatch.setattr("srnn_zoo.evaluation.app.launch", lambda *args, **options: served.append((args, options)))
    assert run("app", place / "b", "--title", "Colours", "--port", 7999, "--sizes", "48,64").code == 0
    [((model, title), options)] = served
    assert (title, options) == ("Colours", {"server_name": "127.0.0.1", "server_port": 7999})
    assert model.level_sizes() == [(48, 48), (64, 64)]
    assert not model.training


def test_what_is_missing_is_said_before_a_page_opens(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert 'the app needs gradio: pip install "srnn-zoo[app]"' in refused("app", place / "b")
    assert "no such folder" in refused("app", "./none")


@pytest.mark.slow
def test_a_port_that_is_taken_is_named(place):
    import socket

    pytest.importorskip("gradio", reason='the app needs gradio: pip install "srnn-zoo[app]"')
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = run("app", place / "b", "--port", port)
    assert said.code == 1
    assert str(port) in said.reason
