"""Triton kernels, each with a naive twin, its timing and its traffic formula.

Nothing is here yet. The folder `kernels/` above is no package on purpose: a top-level `kernels`
would hide the one that `transformers` looks for.
"""
