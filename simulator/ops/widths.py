"""Widths of published attention modules, by the models' config.json."""

from __future__ import annotations

from collections.abc import Mapping

from simulator.ops.module import ModuleWidths, block_widths, compressed_widths, mla_widths

DEEPSEEK_V3 = {"hidden": 7168, "q_rank": 1536, "latent": 512, "rope": 64, "nope": 128, "value": 128, "n_heads": 128}
GLM_5 = {"hidden": 6144, "q_rank": 2048, "latent": 512, "rope": 64, "nope": 192, "value": 256, "n_heads": 64}
V4_FLASH = {"hidden": 4096, "q_rank": 1024, "head_dim": 512, "o_rank": 1024, "o_groups": 8, "n_heads": 64}
V4_PRO = {"hidden": 7168, "q_rank": 1536, "head_dim": 512, "o_rank": 1024, "o_groups": 16, "n_heads": 128}

WIDTHS: Mapping[str, ModuleWidths] = {
    "v3": mla_widths(**DEEPSEEK_V3),
    "v3.2": mla_widths(**DEEPSEEK_V3, index_heads=64, top_k=2048),
    "glm-5": mla_widths(**GLM_5, index_heads=32, top_k=2048),
    "v4-flash csa": compressed_widths(**V4_FLASH, compress=4, window=128, index_heads=64, top_k=512),
    "v4-flash hca": compressed_widths(**V4_FLASH, compress=128, window=128),
    "v4-pro csa": compressed_widths(**V4_PRO, compress=4, window=128, index_heads=64, top_k=1024),
    "v4-pro hca": compressed_widths(**V4_PRO, compress=128, window=128),
    "m3": block_widths(hidden=6144, n_heads=64, kv_heads=4, head_dim=128, index_dim=128, top_k=2048),
}
"""Model, and kind of layer where it has several -> widths of its attention modules."""
