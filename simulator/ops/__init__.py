"""Operators and what they move: device-free arrays of flop, bytes and launches."""
