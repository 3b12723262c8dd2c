"""Models that leave Python: graphs for other runtimes, and all that a program without torch needs to use them."""

import timm  # noqa: F401  # before any module here (`srnn_zoo._register_names`)
