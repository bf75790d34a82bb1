"""DeepSeek-V4: folded cache entries beside a window, hyper-connections, experts in every layer."""

from __future__ import annotations

from simulator.model.architectures.family import Experts, Family, mixture
from simulator.model.architectures.registry import architecture
from simulator.model.compressed import CompressedSpec
from simulator.model.indexer import IndexerSpec
from simulator.model.layer import AttentionSpec, LayerSpec, SideSpec
from simulator.model.reader import Reader
from simulator.model.spec import ModelSpec

_RATIOS = {"sliding_attention": 0, "compressed_sparse_attention": 4, "heavily_compressed_attention": 128}
"""Words of transformers 5, and the tokens per entry that it takes where the file has no ``compress_rates``."""


def hyper_connections(streams: int, hidden: int) -> tuple[tuple[SideSpec, ...], tuple[SideSpec, ...]]:
    """Matrices that mix residual streams around the two blocks of a layer, and those that fold them at the end [1]_.

    Each makes ``streams`` weights before a block, as many after it and a square of them between, with a bias each
    and three scales.

    References
    ----------
    .. [1] Manifold-constrained hyper-connections, DeepSeek-V4 technical report, section 2.2.
    """
    outputs, width = (2 + streams) * streams, streams * hidden
    around = tuple(SideSpec(name, outputs, width, outputs + 3) for name in ("streams.mixer", "streams.ffn"))
    return around, (SideSpec("streams.fold", streams, width, streams + 1),)


def _ratios(reader: Reader) -> tuple[int, ...]:
    """Tokens per cache entry of each layer; files list the multi-token-prediction layer too."""
    n_layers = reader.layers("num_hidden_layers")
    words = reader.strings("layer_types")
    ratios = reader.numbers("compress_ratios")
    if words is not None:
        unknown = set(words) - set(_RATIOS)
        if unknown:
            reader.fail("layer_types", f"has {sorted(unknown)[0]!r}, which is not supported")
        rates = reader.section("compress_rates")
        taken = {w: rates.whole(w, default=r, low=0) if rates and r else r for w, r in _RATIOS.items()}
        ratios = tuple(taken[word] for word in words)
    elif ratios is None:
        reader.fail("compress_ratios", "is missing; the file must say how many tokens an entry stands for")
    extra = reader.whole("num_nextn_predict_layers", default=0, low=0)
    if len(ratios) not in (n_layers, n_layers + extra):
        reader.fail("compress_ratios", f"lists {len(ratios)} layers, the model has {n_layers}")
    return ratios[:n_layers]


def _attention(reader: Reader, ratio: int, picks: bool) -> AttentionSpec:
    n_heads, head_dim = reader.whole("num_attention_heads"), reader.whole("head_dim")
    if reader.whole("num_key_value_heads", default=1) != 1:
        reader.fail("num_key_value_heads", "must be 1: an entry is key and value of all heads")
    indexer = None
    if picks:
        indexer = IndexerSpec(reader.whole("index_n_heads"), reader.whole("index_head_dim"), reader.whole("index_topk"))
    spec = CompressedSpec(
        reader.whole("q_lora_rank"), reader.whole("o_lora_rank"), reader.whole("o_groups"), ratio, indexer
    )
    window = reader.whole("sliding_window")
    return AttentionSpec(n_heads, 1, head_dim, head_dim, window, sinks=True, compressed=spec)


@architecture("deepseek_v4", "deepseek_ref", ignored=("hc_sinkhorn_iters", "num_hash_layers", "mlp_layer_types"))
def deepseek_v4(reader: Reader, name: str) -> ModelSpec:
    """DeepSeek-V4: layers of a window alone, of entries of 4 tokens that are picked, and of entries of 128."""
    ratios = _ratios(reader)
    if reader.flag("attention_bias"):
        reader.fail("attention_bias", "is true; its attention is read without biases")
    unknown = set(ratios) - {0, 4, 128}
    if unknown:
        # Which of them an indexer picks from is known for these alone.
        reader.fail("compress_ratios", f"has {min(unknown)}; known: 0, 4, 128")
    reader.whole("n_shared_experts", low=0)
    moe = mixture(reader, Family(), Experts(shared="count"))
    streams, hidden = reader.whole("hc_mult"), reader.whole("hidden_size")
    around, at_the_end = hyper_connections(streams, hidden)
    kinds = {r: LayerSpec(_attention(reader, r, r == 4), moe, sides=around, streams=streams) for r in set(ratios)}
    return ModelSpec(
        name=name,
        architecture=reader.word("model_type", default=""),
        hidden=hidden,
        vocab=reader.whole("vocab_size"),
        layers=tuple(kinds[ratio] for ratio in ratios),
        tied_embeddings=reader.flag("tie_word_embeddings"),
        max_context=reader.whole("max_position_embeddings"),
        sides=at_the_end,
    )
