"""From one image to its pyramid, and from pyramids to batches."""
