"""MNIST with and without batch normalization: Figure 1 of Ioffe & Szegedy 2015."""
