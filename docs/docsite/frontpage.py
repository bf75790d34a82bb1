"""The front page's figure: two kinds of sparsity over the batch, as the model predicts them in this build."""

from docsite.markdown import svg
from reports.style import COLOURS, INK, LINES, MARKERS, MUTED, draw, themed
from simulator.results.swept import sweep
from simulator.scenario.grid import Grid

MODEL, DEVICE = "llama-3.1-8b", "h100-sxm"
POLICIES = {
    "w4a16": "4-bit weights",
    "teal(keep=0.5)": "TEAL, half of the activations",
    "kv_quant(bits=4)": "4-bit KV cache",
    "quest(budget=2048)": "Quest, 2,048 tokens of KV",
}
BATCHES = (1, 2, 4, 8, 16, 32, 64)
PROMPTS = (512, 30000)


def figure() -> str:
    """Speed-up of decoding over the dense model against the batch, at a short and at a long context."""
    rows = _rows()
    label = f"Predicted decode speed-up over dense of four policies, {MODEL} on {DEVICE}, batch 1 to 64"
    broad = draw(2.8, lambda canvas: _paint(canvas, rows, (1, 2)))
    narrow = draw(4.6, lambda canvas: _paint(canvas, rows, (2, 1)), width_in=3.6)
    return "\n".join(
        svg(themed(drawing, kind, label), kind) for kind, drawing in (("broad", broad), ("narrow", narrow))
    )


def _rows() -> list[dict]:
    grid = Grid(
        model=(MODEL,),
        device=(DEVICE,),
        policy=("dense", *POLICIES),
        batch=BATCHES,
        prompt_tokens=PROMPTS,
        output_tokens=(128,),
    )
    return sweep(grid).to_arrow().to_pylist()


def _paint(canvas, rows: list[dict], shape: tuple[int, int]) -> None:
    axes = canvas.subplots(*shape, sharey=True)
    for ax, prompt in zip(axes, PROMPTS, strict=True):
        ax.axhline(1.0, color=INK, linewidth=0.8)
        for j, (policy, name) in enumerate(POLICIES.items()):
            points = [
                (r["batch"], r["tpot_speedup"])
                for r in rows
                if r["prompt_tokens"] == prompt and _same(r["policy"], policy) and r["status"] == "ok"
            ]
            ax.plot(
                *zip(*sorted(points), strict=True), label=name, color=COLOURS[j], linestyle=LINES[j], marker=MARKERS[j]
            )
        ax.set_xscale("log", base=2)
        ax.set_xticks(BATCHES, [f"{b}" for b in BATCHES])
        ax.set_title(f"Context of {prompt:,} tokens")
        ax.annotate("dense", (BATCHES[-1], 1.0), color=MUTED, ha="right", va="top", size=6.5)
    axes[-1].set_xlabel("sequences in the batch")
    axes[0].set_ylabel("decode step, speed-up over dense")
    if shape[0] == 1:
        axes[0].set_xlabel("sequences in the batch")
    canvas.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4 if shape[0] == 1 else 2,
        handlelength=2.6,
    )


def _same(written: str, asked: str) -> bool:
    from simulator.policies import parse

    return parse(written).spelling == parse(asked).spelling
