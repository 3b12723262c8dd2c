"""`python -m srnn_zoo.cli` is the command `srnn-zoo`."""

from . import main

main()
