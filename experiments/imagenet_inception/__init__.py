"""ImageNet with Inception: Figures 2 and 3 of Ioffe & Szegedy 2015."""
