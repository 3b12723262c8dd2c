"""Models that leave Python: graphs for other runtimes, and all that a program without torch needs to use them."""
