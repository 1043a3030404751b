"""From GoogLeNet to Inception-v3, row by row."""
