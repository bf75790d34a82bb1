"""ShadowLLM's claims, measurements and figure, from the quality of the traces that ship."""

import contextlib
import io

from docsite.markdown import table
from simulator.base.console import share
from simulator.results.speed_quality import traded
from simulator.scenario.scenario import Scenario
from simulator.trace import read_trace
from traces import shadow
from traces.verdicts import CLAIMS, rows_of, verdicts

MODELS = {
    "tiny-opt-py": "tiny-opt-py (ReLU)",
    "tiny-llama-py": "tiny-llama-py",
    "smollm2-135m-instruct": "SmolLM2-135M",
}
"""Folders that ship, and how a column calls their model."""
BEFORE = {
    CLAIMS[0]: "1.78 / 5.66, 1.36 / 2.76: holds",
    CLAIMS[1]: "1.78 / 1.87, 1.36 / 1.40: holds",
    CLAIMS[2]: "1.81 / 1.78, 1.35 / 1.36: does not hold",
    CLAIMS[3]: "1.32 / 1.32, 1.15 / 1.15: does not hold",
    CLAIMS[4]: "1.81 / 2.07, 1.35 / 1.41: holds",
    CLAIMS[5]: "1.32 / 1.39, 1.15 / 1.15: holds on ReLU",
    CLAIMS[6]: "1.81 / 1.74, 1.35 / 1.29: does not hold",
    CLAIMS[7]: "1.32 / 1.81, 1.15 / 1.35: holds",
    CLAIMS[8]: "1.37 / 1.32, 2.03 / 1.15: does not hold",
    CLAIMS[9]: "1.32 / 2.16, 1.15 / 1.34: holds",
    CLAIMS[10]: "1.32 / 1.74, 1.15 / 1.29: holds",
}
"""What predictors that never fired said at a half, on the ReLU and the SwiGLU model."""
PAPER = (
    ("opt-6.7b", 2, "7.64 / 8.76"),
    ("opt-13b", 4, "9.02 / 10.3"),
    ("opt-30b", 4, "14.1 / 16.4"),
    ("opt-66b", 4, "24.1 / 27.9"),
)
"""GPUs, and ms per token of ShadowLLM and Deja Vu at half sparsity in its harness (SHAD-008 to 018)."""
OTHERS = (("opt-30b", "h100-sxm", 1, (1, 8, 32)), ("opt-6.7b", "rtx-4090", 1, (1, 8, 32)))


def _rows() -> dict[str, list[dict]]:
    found = {}
    for folder in MODELS:
        quality = read_trace(shadow.SHIPPED / folder / "trace").quality
        if quality is not None:
            found[folder] = rows_of(quality)
    return found


def claims() -> str:
    """Each claim: the paper's figures, what was said before, and figures and verdict of every model."""
    judged = {folder: {v.claim: v for v in verdicts(rows)} for folder, rows in _rows().items()}
    body = []
    for claim in CLAIMS:
        cells = [f"{claim.text} ({claim.ours.name} / {claim.other.name})", claim.paper or "-", BEFORE[claim]]
        for found in judged.values():
            v = found.get(claim)
            at = [f"{v.ours[s]:.3g} / {v.other[s]:.3g}" for s in v.holds] if v else []
            cells.append(f"{', '.join(at)}: **{v.told}**" if v else "-")
        body.append(cells)
    tokens = ", ".join(f"{rows[0]['tokens']:,} ({MODELS[folder]})" for folder, rows in _rows().items())
    headers = ["claim", "paper", "before, at 50 %", *(MODELS[folder] for folder in judged)]
    return table(headers, body) + f"\nScored tokens: {tokens}.\n"


def measurements() -> str:
    """What `python -m traces.shadow tables` prints."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        shadow.tables(traces=None, json_=False)
    lines = (line.rstrip() for line in told.getvalue().rstrip().splitlines())
    return "```text\n" + "\n".join(lines) + "\n```\n"


def speed() -> str:
    """Both predictors at half sparsity, timed on the paper's devices and on others."""
    asked = [(m, "a100-sxm-80g", tp, 1, "torch-graph", 128, paper) for m, tp, paper in PAPER]
    asked += [(m, device, tp, b, "vllm", 512, "") for m, device, tp, batches in OTHERS for b in batches]
    trace = read_trace(shadow.SHIPPED / "tiny-opt-py" / "trace")
    body = []
    for model, device, tp, batch, engine, prompt, paper in asked:
        load = {"batch": batch, "prompt_tokens": prompt, "output_tokens": 128, "engine": engine, "tp": tp}
        points, _ = traded(trace, Scenario.of(model=model, device=device, **load))
        found = {t.method: t for t in points if t.sparsity == 0.5}
        one, other = found["shadowllm"], found["dejavu"]
        times = [1e3 * t.answer.tpot_s.mid for t in (one, other)]
        gains = [t.answer.tpot_speedup.mid for t in (one, other)]
        ratios = [t.quality.perplexity_ratio for t in (one, other)]
        body.append(
            [
                model,
                f"{tp} x {device}" if tp > 1 else device,
                f"{batch}",
                " / ".join(f"{t:.3g}" for t in times),
                paper,
                share(times[0] / times[1] - 1.0, "+.0"),
                " / ".join(f"{g:.2f}x" for g in gains),
                " / ".join(f"{r:.3g}x" for r in ratios),
            ]
        )
    headers = ["model", "device", "batch", "ms per token", "paper", "time", "over dense", "perplexity"]
    return table(headers, body)
