"""Training on images: the shared way for experiments whose arms are networks of images."""
