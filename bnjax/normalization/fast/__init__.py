"""How XLA is made to do batch normalization well. The results would be right without this folder.

- `fused`: the backward pass by its formula. Without it, autodiff of the same definition
  gives the same gradients (`impl="autodiff"`), and keeps several float32 copies of `x` for them.
- `sums`: two sums in one pass over memory. Without it, `x.sum(axes)` twice.
- `borders`: places that XLA's CPU backend does not fuse over. Without it, the function itself.

Each function here is chosen by what a compiler does, not by what the mathematics needs: the
comments say which compiler, and what it does otherwise. Tests count the effects in compiled
programs (`test_memory.py`, `test_sums.py`, `test_fusion_borders.py`).
"""
