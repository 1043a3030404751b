"""Explanations of batch normalization given since 2015, each measured in small."""
