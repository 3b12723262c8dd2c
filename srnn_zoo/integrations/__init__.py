"""Other libraries: what makes SRNNs known to them. Nothing here happens unless it is asked for."""
