"""The ops that can be asked by name, with what each of their values means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from simulator.base.dtypes import KV_FORMATS
from simulator.ops import alone
from simulator.ops.module import PIECES
from simulator.ops.ops import Op
from simulator.ops.routing import SKEWED, UNIFORM
from simulator.ops.widths import WIDTHS


@dataclass(frozen=True)
class Parameter:
    """One value of an op.

    Attributes
    ----------
    meaning, unit : str
        What it says, and its unit.
    default : object
        None: it must be given.
    choices : tuple of str
        Words it may be; empty: a number.
    fixed : bool
        One value for a call; other numbers broadcast.
    share : bool
        A fraction above 0 and at most 1; other numbers are whole.
    least : int
        Smallest whole number.
    """

    meaning: str
    unit: str = "-"
    default: Any = None
    choices: tuple[str, ...] = ()
    fixed: bool = False
    share: bool = False
    least: int = 1


@dataclass(frozen=True)
class NamedOp:
    """An op that can be asked by name.

    Attributes
    ----------
    family : str
        That of the fits of its kernels, "" where it has none.
    measured : bool
        Whether rows of its own kind are among those of the fits.
    """

    summary: str
    build: Callable[..., Op]
    family: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    takes_dtype: bool = True
    example: str = ""
    measured: bool = True


YES_NO = ("no", "yes")
KV = Parameter("format of the KV cache", default="bf16", choices=tuple(KV_FORMATS), fixed=True)
BATCH = Parameter("sequences")
HEADS = Parameter("query heads on this GPU")
Q_LEN = Parameter("new tokens of each sequence", default=1)
TIER = Parameter("memory tier of the device's profile", default="host", choices=("host", "ssd", "cxl"), fixed=True)

NAMED: Mapping[str, NamedOp] = {
    "gemm": NamedOp(
        "dense product C[m, n] = A[m, k] B[k, n]",
        alone.gemm,
        "gemm",
        {
            "m": Parameter("rows: tokens"),
            "n": Parameter("output features"),
            "k": Parameter("inner length"),
            "batch": Parameter("independent products of the shape in one call", default=1),
        },
        example="gemm(m=16,n=11008,k=4096)",
    ),
    "spmm": NamedOp(
        "product with a sparse B, by measured speed-ups of its kernels over the dense one",
        alone.spmm,
        "sparse",
        {
            "m": Parameter("rows: tokens"),
            "n": Parameter("output features"),
            "k": Parameter("inner length"),
            "keep": Parameter("share of B that is stored", default=0.5, share=True, fixed=True),
            "pattern": Parameter(
                "2:4; V:N:M (Spatha); unstructured CSR (Sputnik); columns of `vector` rows (CLASP)",
                default="2:4",
                choices=("2:4", "V:N:M", "Sputnik", "CLASP"),
                fixed=True,
            ),
            "vector": Parameter("rows that share a choice of columns", default=1, fixed=True),
        },
        example="spmm(m=4096,n=4096,k=4096,pattern=2:4)",
    ),
    "attention": NamedOp(
        "causal attention over a KV cache: prefill, decode, MLA decode, a window, a block mask",
        alone.attention,
        "attention",
        {
            "phase": Parameter("kernel", choices=("prefill", "decode", "decode-mla"), fixed=True),
            "batch": BATCH,
            "kv_len": Parameter("context of each sequence, new tokens included", "tokens"),
            "n_heads": HEADS,
            "n_kv_heads": Parameter("KV heads on this GPU"),
            "head_dim": Parameter("width of a head; 576 for decode-mla", fixed=True),
            "q_len": Q_LEN,
            "window": Parameter("sliding window; 0: none", "tokens", default=0, fixed=True, least=0),
            "kv_dtype": KV,
            "keep": Parameter(
                "share of the (query, key) pairs a block mask leaves", default=1.0, share=True, fixed=True
            ),
        },
        example="attention(phase=decode,batch=16,kv_len=4096,n_heads=32,n_kv_heads=8,head_dim=128)",
    ),
    "module": NamedOp(
        "attention block of a layer as an engine runs it (MLA, DSA, CSA, HCA, MSA), or one kernel of it",
        alone.module,
        "module",
        {
            "kind": Parameter("module, or kernel of one", choices=tuple(PIECES), fixed=True),
            "phase": Parameter("kernels", choices=("prefill", "decode"), fixed=True),
            "widths": Parameter("model whose widths it has", choices=tuple(WIDTHS), fixed=True),
            "batch": BATCH,
            "n_heads": HEADS,
            "q_len": Q_LEN,
            "past_len": Parameter("tokens cached before them", "tokens", default=0, least=0),
            "kv_dtype": KV,
            "math": Parameter("format queries meet keys in", default="bf16", choices=("bf16", "fp8"), fixed=True),
            "indexes": Parameter("whether the layer makes its own choice", default="yes", choices=YES_NO, fixed=True),
        },
        example="module(kind=dsa,phase=decode,widths=v3.2,batch=8,n_heads=128,past_len=32768)",
    ),
    "linear_attention": NamedOp(
        "recurrence or short convolution of a layer that keeps a state in place of a KV cache",
        alone.linear_attention,
        "linear_attention",
        {
            "kind": Parameter("rule of the state", choices=("gdn", "kda", "mamba2"), fixed=True),
            "phase": Parameter("kernel", choices=("prefill", "decode", "verify"), fixed=True),
            "batch": BATCH,
            "k_heads": Parameter("heads of queries and keys (groups of Mamba) on this GPU"),
            "v_heads": Parameter("heads of values on this GPU"),
            "k_dim": Parameter("width of a key", fixed=True),
            "v_dim": Parameter("width of a value", fixed=True),
            "q_len": Q_LEN,
            "kernel_part": Parameter("kernel of the layer", default="scan", choices=("scan", "conv"), fixed=True),
        },
        takes_dtype=False,
        example="linear_attention(kind=gdn,phase=decode,batch=64,k_heads=16,v_heads=32,k_dim=128,v_dim=128)",
    ),
    "moe": NamedOp(
        "routed experts of a layer: grouped products",
        alone.moe,
        "moe",
        {
            "tokens": Parameter("tokens routed over all GPUs of the group"),
            "hidden": Parameter("model width"),
            "intermediate": Parameter("width of one expert"),
            "top_k": Parameter("experts of a token"),
            "experts": Parameter("experts of the layer"),
            "tp": Parameter("GPUs that share each expert", default=1),
            "ep": Parameter("groups of GPUs the experts are split between", default=1),
            "gated": Parameter("gate beside up and down", default="yes", choices=YES_NO, fixed=True),
            "routing": Parameter(
                "how tokens find experts",
                default=SKEWED,
                choices=(SKEWED, UNIFORM, "balanced", "power_law_1.01", "power_law_1.2"),
                fixed=True,
            ),
        },
        example="moe(tokens=64,hidden=4096,intermediate=1536,top_k=8,experts=128)",
    ),
    "collective": NamedOp(
        "message among the GPUs of a group",
        alone.collective,
        "collective",
        {
            "op": Parameter(
                "operation",
                choices=("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv"),
                fixed=True,
            ),
            "bytes": Parameter("whole buffer, as NCCL counts it", "B"),
            "ranks": Parameter("GPUs", fixed=True, least=2),
            "nodes": Parameter("machines they stand in", default=1, fixed=True),
        },
        takes_dtype=False,
        example="collective(op=all_reduce,bytes=1048576,ranks=8)",
    ),
    "exchange": NamedOp(
        "tokens sent to their experts' ranks, or brought back (all-to-all)",
        alone.exchange,
        "alltoall",
        {
            "op": Parameter("direction", choices=("dispatch", "combine"), fixed=True),
            "tokens": Parameter("tokens of this rank"),
            "hidden": Parameter("model width"),
            "top_k": Parameter("experts of a token"),
            "ranks": Parameter("GPUs that share the experts", fixed=True, least=2),
            "element_bytes": Parameter("bytes of an element on the link", "B", default=2, fixed=True),
            "per_expert": Parameter("a copy per expert, not per rank", default="no", choices=YES_NO, fixed=True),
            "sms": Parameter("SMs that copy", default=24),
        },
        takes_dtype=False,
        example="exchange(op=dispatch,tokens=128,hidden=7168,top_k=8,ranks=8)",
    ),
    "elementwise": NamedOp(
        "pass bound by memory",
        alone.elementwise,
        "elementwise",
        {
            "read_bytes": Parameter("read", "B"),
            "write_bytes": Parameter("written", "B", default=0, least=0),
            "kind": Parameter(
                "work on each element",
                default="unary",
                choices=("unary", "binary", "add", "activation", "norm", "softmax"),
                fixed=True,
            ),
        },
        takes_dtype=False,
        example="elementwise(kind=norm,read_bytes=8388608,write_bytes=8388608)",
    ),
    "top_k": NamedOp(
        "choice of the best fp32 scores of each row",
        alone.top_k,
        "elementwise",
        {
            "elements": Parameter("scores of a row"),
            "rows": Parameter("rows searched apart", default=1),
            "picked": Parameter("indices written per row", default=1),
        },
        takes_dtype=False,
        example="top_k(elements=131072,rows=8,picked=2048)",
        measured=False,
    ),
    "gather": NamedOp(
        "rows of a table picked one by one, from HBM, or from host memory or an SSD over their link",
        alone.gather,
        "elementwise",
        {
            "rows": Parameter("rows picked"),
            "row_bytes": Parameter("contiguous bytes of a row", "B", fixed=True),
            "tier": Parameter("where the table lies", default="hbm", choices=("hbm", *TIER.choices), fixed=True),
            "zero_copy": Parameter("a kernel reads the tier itself", default="no", choices=YES_NO, fixed=True),
            "in_flight": Parameter(
                "copies on their way at once; 0: 1 from host, 32 from an SSD", default=0, fixed=True, least=0
            ),
        },
        takes_dtype=False,
        example="gather(rows=100000,row_bytes=512,tier=host,zero_copy=yes)",
        measured=False,
    ),
    "transfer": NamedOp(
        "one long copy between the GPU and another memory tier",
        alone.transfer,
        "",
        {
            "read_bytes": Parameter("towards the GPU", "B"),
            "write_bytes": Parameter("away from it, at once with the other", "B", default=0, least=0),
            "tier": TIER,
        },
        takes_dtype=False,
        example="transfer(read_bytes=1e9,tier=host)",
    ),
}
"""Name -> op, with the values that a person gives it."""
