"""Other libraries on SRNNs."""
