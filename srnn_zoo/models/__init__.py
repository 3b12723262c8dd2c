"""The networks: backbone, cell and classifier, how they are made, and what they cost."""
