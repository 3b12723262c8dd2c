"""From files to labelled images."""
