"""One peer in its own process: reads points on stdin, writes answers and timings as JSON on stdout.

Runs inside .venv-peers, which has the peers and not Shadowline: `peers.py` starts it once per peer.
"""

import contextlib
import importlib.metadata
import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

Row = dict[str, Any]
DEVICES = {
    "aiconfigurator": {"a100-sxm-80g": "a100_sxm", "h100-sxm": "h100_sxm"},
    "llm-analysis": {"a100-sxm-80g": "a100-sxm-80gb", "h100-sxm": "h100-sxm-80gb"},
    "genz-llm": {"a100-sxm-80g": "A100_80GB_GPU", "h100-sxm": "H100_GPU"},
}
SETUP = ("model", "device", "tp", "batch", "prompt", "output")
PACKAGES = {"aiconfigurator": "aiconfigurator-core"}
ARCHITECTURES = {"llama": "LlamaForCausalLM", "bloom": "BloomForCausalLM", "gpt2": "GPT2LMHeadModel"}
VARIANTS = {
    "aiconfigurator": ("trtllm", "vllm", "sglang"),
    "llm-analysis": ("eff 1", "eff .7/.9"),
    "genz-llm": ("eff 1", "eff .8"),
}
"""Engine tables of aiconfigurator; the others know an efficiency, their default 1 and a usual one."""


class Refused(Exception):
    """The peer says no to a point, in its own words."""


class Aiconfigurator:
    """`EngineHandle`: the compiled engine under aiconfigurator's API, measured kernel tables of the wheel."""

    calls: ClassVar = {
        "answer": "EngineHandle.run_static(batch, isl, osl), stride 32",
        "step": "EngineHandle.predict_decode_latency(batch, isl)",
    }

    def __init__(self, folder: Path) -> None:
        from aiconfigurator_core.sdk.engine import EngineHandle

        self.compile, self.folder = EngineHandle.compile, folder
        self.handles: dict[tuple, Any] = {}

    def handle(self, row: Row, facts: Row, variant: str) -> Any:
        key = (row["model"], row["device"], row["tp"], variant)
        if key not in self.handles:
            path = self.folder / row["model"]
            path.mkdir(exist_ok=True)
            config = {
                "architectures": [ARCHITECTURES[facts["type"]]],
                "model_type": facts["type"],
                "hidden_size": facts["hidden"],
                "intermediate_size": facts["ffn"],
                "num_hidden_layers": facts["layers"],
                "num_attention_heads": facts["heads"],
                "num_key_value_heads": facts["kv_heads"],
                "vocab_size": facts["vocab"],
                "max_position_embeddings": facts["context"],
                "torch_dtype": "float16",
            }
            (path / "config.json").write_text(json.dumps(config))
            device = DEVICES["aiconfigurator"][row["device"]]
            try:
                made = self.compile(str(path), device, variant, tp_size=row["tp"])
            except (ValueError, RuntimeError, KeyError) as error:
                made = Refused(str(error).split(". Supported")[0])
            self.handles[key] = made
        if isinstance(self.handles[key], Refused):
            raise self.handles[key]
        return self.handles[key]

    def answer(self, row: Row, facts: Row, variant: str) -> tuple[float, float]:
        engine = self.handle(row, facts, variant)
        first, later, _ = engine.run_static(batch_size=row["batch"], isl=row["prompt"], osl=max(row["output"], 2))
        return first * 1e-3, later * 1e-3 / (max(row["output"], 2) - 1)

    def step(self, row: Row, facts: Row, variant: str) -> float:
        handle = self.handle(row, facts, variant)
        return handle.predict_decode_latency(row["batch"], row["prompt"]) * 1e-3


class LlmAnalysis:
    """`LLMAnalysis.inference`: one object per model, device and tp, asked for every point."""

    calls: ClassVar = {"answer": "LLMAnalysis.inference(batch, seq_len, num_tokens), object kept, log off"}

    def __init__(self, folder: Path) -> None:
        from llm_analysis import analysis, config

        self.analysis, self.config = analysis, config
        analysis.logger.setLevel(logging.CRITICAL)
        self.objects: dict[tuple, Any] = {}

    def answer(self, row: Row, facts: Row, variant: str) -> tuple[float, float]:
        key = (row["model"], row["device"], row["tp"], variant)
        if key not in self.objects:
            # It knows two MLP matrices only; three gated ones weigh as much as two of 1.5 times the width.
            width = int(facts["ffn"] * (1.5 if facts["gated"] else 1.0))
            model = self.config.ModelConfig(
                name=row["model"],
                num_layers=facts["layers"],
                n_head=facts["heads"],
                hidden_dim=facts["hidden"],
                vocab_size=facts["vocab"],
                max_seq_len=None,
                num_key_value_heads=facts["kv_heads"],
                ffn_embed_dim=width,
                expansion_ratio=4,
            )
            math, memory = (1.0, 1.0) if variant == "eff 1" else (0.7, 0.9)
            self.objects[key] = self.analysis.LLMAnalysis(
                model,
                self.config.get_gpu_config_by_name(DEVICES["llm-analysis"][row["device"]]),
                self.config.DtypeConfig(),
                self.config.ParallelismConfig(tp_size=row["tp"], sp_size=row["tp"]),
                flops_efficiency=math,
                hbm_memory_efficiency=memory,
            )
        try:
            out = self.objects[key].inference(
                batch_size_per_gpu=row["batch"], seq_len=row["prompt"], num_tokens_to_generate=row["output"]
            )
        except AssertionError as error:
            raise Refused(str(error).split("(requiring")[0]) from None
        return out["prefill_latency"], out["decode_latency"]


class Genz:
    """`prefill_moddeling` and `decode_moddeling`: every call writes and reads back a CSV file."""

    calls: ClassVar = {"answer": "prefill_moddeling + decode_moddeling at the mean context", "step": "decode_moddeling"}

    def __init__(self, folder: Path) -> None:
        import GenZ
        from GenZ.Models.default_models import ModelConfig

        self.genz, self.config = GenZ, ModelConfig
        self.written = Path("/tmp/genz/data/model")
        self.models: dict[str, Any] = {}

    def _settings(self, row: Row, facts: Row, variant: str) -> Row:
        if row["model"] not in self.models:
            self.models[row["model"]] = self.config(
                model=row["model"],
                hidden_size=facts["hidden"],
                num_attention_heads=facts["heads"],
                num_key_value_heads=facts["kv_heads"],
                num_ffi=2 if facts["gated"] else 1,
                intermediate_size=facts["ffn"],
                num_decoder_layers=facts["layers"],
                vocab_size=facts["vocab"],
            )
        return {
            "model": self.models[row["model"]],
            "batch_size": row["batch"],
            "system_name": DEVICES["genz-llm"][row["device"]],
            "system_eff": 1 if variant == "eff 1" else 0.8,
            "tensor_parallel": row["tp"],
            "parallelism_heirarchy": f"TP{{{row['tp']}}}_EP{{1}}_PP{{1}}",
        }

    def _latency(self, call: Callable[..., Row], **settings: Any) -> float:
        before = set(self.written.iterdir()) if self.written.is_dir() else set()
        try:
            # `.Latency` is a class attribute that stays 0; the item is the answer.
            return call(bits="bf16", **settings)["Latency"] * 1e-3
        except ValueError as error:
            raise Refused(str(error).split(" System Memory")[0]) from None
        finally:
            after = set(self.written.iterdir()) if self.written.is_dir() else set()
            for path in after - before:
                path.unlink(missing_ok=True)

    def answer(self, row: Row, facts: Row, variant: str) -> tuple[float, float]:
        later = self.step(row, facts, variant)
        settings = self._settings(row, facts, variant)
        return self._latency(self.genz.prefill_moddeling, input_tokens=row["prompt"], **settings), later

    def step(self, row: Row, facts: Row, variant: str) -> float:
        return self._latency(
            self.genz.decode_moddeling,
            input_tokens=row["prompt"],
            output_tokens=row["output"] // 2,
            Bb=1,
            **self._settings(row, facts, variant),
        )


PEERS = {"aiconfigurator": Aiconfigurator, "llm-analysis": LlmAnalysis, "genz-llm": Genz}


def answers(peer: Any, name: str, rows: list[Row], models: Row, budget_s: float) -> list[Row]:
    """Seconds of every row and variant, or why not; rows that `budget_s` leaves no time for say so."""
    out, start = [], time.perf_counter()
    asked: dict[tuple, tuple[float, float]] = {}
    for variant in VARIANTS[name]:
        for row in rows:
            one = {"id": row["id"], "variant": variant}
            facts = models[row["model"]]
            try:
                if row["device"] not in DEVICES[name]:
                    raise Refused(f"no {row['device']}")
                # TTFT and TPOT rows of one run are one question.
                key = (variant, *(row[k] for k in SETUP))
                if key not in asked:
                    if time.perf_counter() - start > budget_s:
                        raise Refused(f"not asked: {budget_s:g} s were over")
                    asked[key] = peer.answer(row, facts, variant)
                first, later = asked[key]
                more = max(row["output"] - 1, 0)
                times = {"ttft": first, "tpot": later, "e2e": first + more * later}
                one["time_s"] = times[row["metric"]]
            except Refused as error:
                one["why"] = str(error)
            # A peer that falls over on a point is a finding, told with its own words.
            except Exception as error:  # noqa: BLE001
                one["why"] = f"{type(error).__name__}: {error}"
            out.append(one)
    return out


def speed(peer: Any, name: str, points: list[Row], models: Row, limit_s: float) -> list[Row]:
    """Points per second of every call, at most `limit_s` each, after one point to warm up."""
    out = []
    for what, call in peer.calls.items():
        ask, facts = getattr(peer, what), models[points[0]["model"]]
        ask(points[0], facts, VARIANTS[name][0])
        done, start = 0, time.perf_counter()
        for point in points:
            ask(point, facts, VARIANTS[name][0])
            done += 1
            if time.perf_counter() - start > limit_s:
                break
        out.append({"what": what, "call": call, "points": done, "seconds": time.perf_counter() - start})
    return out


def main() -> None:
    name = sys.argv[1]
    work = json.load(sys.stdin)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    # Peers print as they like; stdout belongs to the answer.
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        peer = PEERS[name](Path(folder))
        out = {
            "version": importlib.metadata.version(PACKAGES.get(name, name)),
            "speed": speed(peer, name, work["points"], work["models"], work["limit_s"]),
            "answers": answers(peer, name, work["rows"], work["models"], work["budget_s"]),
        }
    json.dump(out, sys.stdout)


if __name__ == "__main__":
    main()
