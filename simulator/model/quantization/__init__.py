"""Formats of a quantised checkpoint, from its ``quantization_config`` or ``hf_quant_config.json``."""

# Each of these registers its methods.
from simulator.model.quantization import auto_round, compressed, modelopt, quark, torchao  # noqa: F401
from simulator.model.quantization.methods import METHODS, scheme_of
from simulator.model.quantization.scheme import Scheme, apply

__all__ = ["METHODS", "Scheme", "apply", "scheme_of"]
