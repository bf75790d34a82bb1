"""Sparsity traces of real models: collecting them, training and judging predictors (torch, transformers).

Nothing is here yet; the simulator reads traces as files and never imports this package.
"""
