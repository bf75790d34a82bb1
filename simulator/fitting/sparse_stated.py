"""Published 2:4 products that fill in where no row was measured: few tokens, and the cards that serve."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

SOURCE = "SlideSparse"
POINTS = (
    # (device, TB/s of the dense product, TB/s of the 2:4 product)
    ("a100-pcie-80g", 1.33, 1.11),
    ("h100-pcie", 1.73, 1.01),
    ("b200", 5.50, 4.58),
)
"""Stream rates of cuSPARSELt beside cuBLASLt at 64 tokens in bf16, published with SlideSparse: 1.49x, 1.03x, 1.48x.

Of B200 only the ratio is published; its dense product is assumed at the A100's share of the bandwidth. Claims of these
three points are marked as used for calibration.
"""
TOKENS, OUTPUTS, INPUTS = 64.0, 37888.0, 3584.0
"""Gate and up of Qwen2.5-7B, the largest of the four products that the published ratio sums [-]."""
STORED = 9.0 / 16.0
"""Bytes of a 2:4 weight over dense in 16 bit [-]."""


def stated() -> pd.DataFrame:
    """The points as prepared rows of a sparse file."""
    import pandas as pd

    from simulator.fitting.sparse_rows import prepare

    size = 2.0 * OUTPUTS * INPUTS
    return prepare(
        pd.DataFrame(
            {
                "source": SOURCE,
                "device": [device for device, _, _ in POINTS],
                "category": "spmm-weight",
                "pattern": "2:4",
                "dtype": "bf16",
                "m": TOKENS,
                "n": OUTPUTS,
                "k": INPUTS,
                **dict.fromkeys(("batch", "q_len", "kv_len", "n_heads", "n_kv_heads"), float("nan")),
                "sparsity": 0.5,
                "dense_time_s": [size / (dense * 1e12) for _, dense, _ in POINTS],
                "sparse_time_s": [STORED * size / (sparse * 1e12) for _, _, sparse in POINTS],
                "dense_kernel": "cuBLASLt",
                "sparse_kernel": "cuSPARSELt",
            }
        )
    )
