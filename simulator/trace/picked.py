"""What of a model is picked per token, and how sparse that makes it, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulator.base.console import share
from simulator.trace.depth import over_layers

if TYPE_CHECKING:
    from simulator.trace.curves import Trace

BATCHES = (1, 8, 64, 256)
"""Rows at which single layers are told."""
LEVELS = (None, 0.1, 0.3, 0.5, 0.7)
"""Levels at which sets are told: the exact non-zeros, then shares kept."""
KV = {"keys": "kv.k_cached", "values": "kv.v"}


@dataclass(frozen=True)
class Units:
    """What of the FFN is picked per token: neurons or experts, at the level they are told at."""

    tensor: str
    name: str
    level: float | None
    words: str

    @classmethod
    def of(cls, trace: Trace) -> Units:
        """Exact non-zeros where there are enough zeros to speak of, else half kept; experts without neurons."""
        for level in (None, 0.5):
            if over_layers(trace, "ffn.down", "union_density", level) is not None:
                words = "that are not zero" if level is None else "with the 50 % largest outputs"
                return cls("ffn.down", "FFN neurons", level, words)
        return cls("moe.expert", "experts", None, "the router chose")


def facts(trace: Trace) -> str:
    """The model and the text it was measured on."""
    m, f = trace.manifest, trace.manifest.facts
    revision = f" at {m.revision[:12]}" if m.revision else ""
    return (
        f"{m.model}{revision}: {f.n_layers} layers, hidden {f.hidden}, {f.n_heads} heads on {f.n_kv_heads} KV heads,"
        f" {f.intermediate} {f.activation} neurons; {m.tokens:,} tokens of text {m.text_sha256[:12]}, {m.dtype},"
        f" seed {m.seed}, {m.created}, sequences of {m.settings.get('sequence_length', '?')}"
    )


def answer(trace: Trace) -> str:
    """How sparse the model is, in a sentence or two."""
    units = Units.of(trace)
    union = over_layers(trace, units.tensor, "union_density", units.level)
    parts = []
    if union is not None:
        fades = ", ".join(f"{share(union.mean_at(b))} for {b} rows" for b in BATCHES if b in union.x and b > 1)
        parts.append(
            f"A token uses {share(union.mean_at(1), '.1')} of the {units.name} ({units.words}); a batch needs the"
            f" union, {fades}."
        )
    mass = over_layers(trace, "attn.mass", "tokens_for_mass", 0.9)
    if mass is not None:
        parts.append(
            f"90 % of the attention lies on {share(mass.mean[-1])} of {mass.x[-1]:,.0f} tokens of context, each"
            " sequence for itself, so this sparsity does not fade with the batch."
        )
    return " ".join(parts) or "The trace holds neither sets of units nor attention."
