"""One network, five normalizations."""
