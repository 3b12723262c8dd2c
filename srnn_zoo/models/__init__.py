"""The networks: backbone, cell and classifier, how they are made, and what they cost."""

import timm  # noqa: F401  # before any module here (`srnn_zoo._register_names`)
