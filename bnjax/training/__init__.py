"""Training: pure steps, their compilation over devices, checkpoints, one loop."""
