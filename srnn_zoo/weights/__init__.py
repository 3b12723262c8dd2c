"""A model on disk and on the Hugging Face Hub."""

import timm  # noqa: F401  # before any module here (`srnn_zoo._register_names`)
