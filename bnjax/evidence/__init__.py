"""Records of runs, and the figures, tables and documents that are made from them."""
