"""Triton kernels that check the simulator: its byte counts exactly, its times where a GPU is at hand.

The folder `kernels/` above is no package on purpose: a top-level `kernels` would hide the one that
`transformers` looks for.
"""
