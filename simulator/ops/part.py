"""Which part of the model an op belongs to, and which ops keep weights: facts of the op, never of its name."""

from __future__ import annotations

from enum import StrEnum


class OpPart(StrEnum):
    """Part of the model, as a breakdown names it; work a policy adds is told by `Op.overhead`."""

    ATTENTION = "attention"
    PROJECTIONS = "attention projections"
    FFN = "FFN"
    HEAD = "LM head"
    COMMUNICATION = "communication"
    PREDICTOR = "predictor"
    OTHER = "other"
