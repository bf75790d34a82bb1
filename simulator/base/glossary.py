"""One text per term, for documentation, command-line help, tooltips and the glossary of a report."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

TERMS: Mapping[str, str] = {
    "TTFT": "Time to first token: from a request's arrival to its first token; in a static batch one prefill of the"
    " whole batch [s].",
    "TPOT": "Time per output token: mean decode step over the output, (E2E - TTFT) / (output - 1) [s]."
    " Others use the word for E2E / output; that is not meant here.",
    "E2E": "End-to-end time of a request or static batch: TTFT + (output - 1) TPOT [s].",
    "ITL": "Inter-token latency: time between two tokens of a request, stalls by other prompts included [s].",
    "goodput": "Requests per second that stay below every promised limit themselves.",
    "tokens/s": "Output tokens of the batch per second of end-to-end time; prompt tokens are not counted.",
    "tokens/s/GPU": "tokens/s over all GPUs of the replica (tp x pp).",
    "speed-up": "Throughput (tokens/s) over the dense model's in the same scenario and at the same batch; 1.5x means"
    " half as many tokens again per second.",
    "dense": "The same model, device, engine and load without a sparsity policy: what every speed-up is against.",
    "win": "A speed-up of 1.02x or more that is sure: P(win) 0.9 or more; a loss is 0.98x or less with P(win) 0.1 or"
    " less. An interval within 0.98x to 1.02x is as fast as dense; all else is undecided.",
    "P(win)": "Probability that a policy is faster than dense, from the interval of its speed-up: what both runs share"
    " errs alike and cancels, what the policy changes spreads as published speed-ups of its family do.",
    "break-even": "The batch or prompt length from which, or up to which, a policy wins over dense.",
    "90 % interval": "The range in which nine of ten measurements are expected, from the residuals of the fits behind"
    " the number; its coverage on held-out rows is stated under validation.",
    "basis": "How good an answer is: CALIBRATED (measured on that device), EXTRAPOLATED (from a sibling device, kernel"
    " or format) or DATASHEET (printed peaks and pooled efficiencies). A sum is as good as its worst part.",
    "bound": "What takes most of the end-to-end time: compute, weight reads, KV reads, activation traffic, the"
    " interconnect, launch latency or the host.",
    "prefill": "The step that reads the whole prompt at once and puts out the first token.",
    "decode": "A step that puts out one token per sequence and reads the weights and the KV cache.",
    "KV cache": "Keys and values of all earlier tokens, kept per sequence so that they need not be computed again.",
    "keep": "Share that is kept: 1 - sparsity.",
    "sparsity": "Share of weights, activations or KV entries that is not stored, read or computed.",
    "policy": "A sparsity method with its parameters, as the operations really run: its predictor, selection and"
    " gather cost time too.",
    "batch": "Sequences that run together from the first to the last token (a static batch).",
    "tp": "Tensor-parallel GPUs: each holds a slice of every layer and they exchange sums after it.",
    "pp": "Pipeline stages: each GPU group holds some of the layers.",
    "max batch": "Largest batch whose weights, KV cache and working memory fit the engine's share of the memory.",
    "roofline": "The bound that a device's peak arithmetic and its memory bandwidth put on the speed of an operation"
    " of a given arithmetic intensity.",
    "arithmetic intensity": "flop per byte moved; below the ridge (peak flop/s over bandwidth) memory is the bound.",
    "flop": "Floating-point operations; a multiplication and an addition count as two.",
    "GEMM": "Matrix product: the linear layers of the model.",
    "APE": "Absolute percentage error of a prediction: |predicted - measured| / measured.",
    "p90": "Value that nine of ten do not exceed.",
    "bias": "Median of predicted over measured, minus 1: above zero predicts too slow.",
    "coverage": "Share of measurements inside the 90 % interval; 85-95 % is meant.",
    "held-out": "Measured shapes the fit has not seen, on any device.",
    "residual": "ln(measured / predicted) of a fit on rows that it has not seen.",
    "bare roofline": "max(flop / peak, bytes / bandwidth) from the datasheet, without any fit: what a back-of-the-"
    "envelope estimate would have said.",
    "perplexity ratio": "Perplexity with the policy over the dense model's on held-out text: 1 is as good as dense.",
    "agreement": "Share of next tokens that are the dense model's own.",
    "loss of quality": "Percentage points of a mean score lost against dense: measured, published for the model, or"
    " carried over from others (EXTRAPOLATED), with a 90 % interval; a perplexity is converted. Unknown is not none.",
    "Pareto front": "The choices that no other choice beats in speed without being worse in quality.",
    "union density": "Share of neurons or heads that at least one row of a batch needs: what has to be read.",
    "window density": "Share of neurons or heads that at least one of some consecutive tokens needs.",
    "attention mass": "Share of the attention probability; few tokens usually hold most of it.",
    "datasheet": "A number as the vendor prints it.",
    "measured": "A number somebody measured and published.",
    "assumed": "A number nobody measured, with its reason; edit it to yours.",
    "GB": "10^9 bytes; GiB is 2^30 bytes.",
    "geometric mean": "exp of the mean of ln(predicted / published): 1 is right on average, 0.9 predicts 10 % less.",
    "rank correlation": "Spearman's correlation of predicted and published speed-ups: 1 orders them alike.",
    "claim": "A figure somebody published, with its setup, which we predict from that setup alone.",
}
"""Term -> what it means here, with its unit."""

_PLURAL = ("batch", "policy", "claim", "residual", "win")


def used(texts: Iterable[str]) -> tuple[str, ...]:
    """Terms that occur in `texts` as whole words, in the order of `TERMS`; case matters for acronyms only."""
    whole = "\n".join(texts)
    folded = whole.casefold()
    return tuple(term for term in TERMS if _pattern(term).search(whole if _acronym(term) else folded))


def _acronym(term: str) -> bool:
    return term.isupper() or term[:2].isupper()


def _pattern(term: str) -> re.Pattern[str]:
    text = term if _acronym(term) else term.casefold()
    stem = re.escape(text.removesuffix("y")) + "(?:y|ies)" if text == "policy" else re.escape(text)
    ending = "(?:s|es)?" if term in _PLURAL else ""
    return re.compile(rf"(?<![\w/-]){stem}{ending}(?![\w/-])")
