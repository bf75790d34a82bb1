"""Request files, synthetic traffic, promises: what is read, and one line for what is not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from simulator.base.errors import InputError
from simulator.serving.readers import read_requests
from simulator.serving.requests import Requests
from simulator.serving.reuse import apply_reuse
from simulator.serving.slo import parse_slo
from simulator.serving.synthetic import arrival_times, lengths, synthetic
from simulator.serving.traffic import traffic

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
OWN = "arrival_s,prompt_tokens,output_tokens\n"
LINE = '{"timestamp": %s, "input_length": %s, "output_length": 5, "hash_ids": [0, 1]}\n'
AT = "2023-11-16 18:17:0"


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_every_kind_of_file_gives_the_same_requests(tmp_path):
    files = {
        "azure.csv": AZURE + f"{AT}3.5000000,374,44\r\n{AT}4.7500000,396,109\r\n",
        "burst.csv": BURST + "3.5,ChatGPT,374,44,418,API log\n4.75,GPT-4,396,109,505,API log\n",
        "own.csv": OWN + "3.5,374,44\n4.75,396,109\n",
        "mooncake.jsonl": '{"timestamp": 3500, "input_length": 374, "output_length": 44}\n'
        '{"timestamp": 4750, "input_length": 396, "output_length": 109}\n',
    }
    for name, text in files.items():
        found = read_requests(written(tmp_path, name, text))
        np.testing.assert_allclose(found.arrival_s, [0.0, 1.25])
        assert found.prompt.tolist() == [374, 396]
        assert found.output.tolist() == [44, 109]


def test_parquet_and_shared_prefixes(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(
        pa.table({"arrival_s": [0.0, 2.0], "prompt_tokens": [5, 6], "output_tokens": [7, 8]}), tmp_path / "r.parquet"
    )
    assert read_requests(tmp_path / "r.parquet").output.tolist() == [7, 8]
    lines = [
        {"timestamp": 0, "input_length": 1100, "output_length": 1, "hash_ids": [7, 8, 9]},
        {"timestamp": 1, "input_length": 1024, "output_length": 1, "hash_ids": [7, 8]},
    ]
    path = written(tmp_path, "m.jsonl", "\n".join(json.dumps(row) for row in lines))
    found = read_requests(path)
    # The third block is 76 tokens long and cannot be shared; the whole second prompt is known but its last token.
    assert found.ids == ((7, 8), (7, 8))
    assert found.prefix_bound() == pytest.approx(1023 / 2124)


BAD = {
    ("a.csv", AZURE + f"{AT}3.5,1,1\n{AT}2.5,1,1\n"): (
        "a.csv:3: the timestamp is before the row above; sort the file by time"
    ),
    ("a.csv", AZURE + f"{AT}3.5,0,1\n{AT}4.5,0,1\n"): ("a.csv:2: prompt tokens must be 1 or more (and 1 more)"),
    ("a.csv", AZURE + f"{AT}3.5,1,x\n"): "a.csv:2: GeneratedTokens 'x' is not a number",
    ("a.csv", AZURE + "noon,1,1\n"): "a.csv:2: TIMESTAMP 'noon' is not a date",
    ("a.csv", AZURE): "a.csv: holds no request",
    ("a.csv", ""): "a.csv: the columns must be one of",
    ("a.csv", AZURE + f"{AT}3.5,1\n"): "a.csv:2: has 2 columns, the header 3",
    ("a.csv", "TIMESTAMP,ContextToken,GeneratedTokens\n"): "'ContextToken' looks like 'ContextTokens'",
    ("b.csv", BURST + "3,ChatGPT,10,0,10,API log\n"): "b.csv:2: output tokens must be 1 or more",
    ("o.csv", OWN + "-1,1,1\n"): "o.csv:2: the timestamp is negative",
    ("o.csv", OWN + "nan,1,1\n"): "o.csv:2: the timestamp is not a number",
    ("o.csv", OWN + "1,1.5,1\n"): "o.csv:2: prompt tokens must be 1 or more",
    ("o.csv", OWN + "1,1,999999999999\n"): "o.csv:2: output tokens must be 100,000,000 or fewer",
    ("m.jsonl", ""): "m.jsonl: holds no request",
    ("m.jsonl", "{"): "m.jsonl:1: is not JSON",
    ("m.jsonl", '{"timestamp": 1}'): "m.jsonl:1: has no 'input_length'",
    ("m.jsonl", "[1, 2]"): "m.jsonl:1: needs numbers under",
    ("m.jsonl", LINE % (5, 1024) + LINE % (4, 1024)): "m.jsonl:2: the timestamp is before",
    ("m.jsonl", LINE % (1, "Infinity")): "m.jsonl:1: needs numbers under",
    ("m.jsonl", LINE % ("NaN", "NaN")): "m.jsonl:1: needs numbers under",
    ("m.jsonl", LINE % (1, 5) + LINE % ("Infinity", 5)): "m.jsonl:2: the timestamp is not a number",
    ("r.parquet", "not parquet"): "is not Parquet",
    ("long.csv", OWN + "1,1,1\n1,1," + "9" * 140_000 + "\n"): "long.csv:3: is not CSV: field larger",
    ("r.txt", "x"): "must end in .csv, .jsonl or .parquet",
}


@pytest.mark.parametrize(("file", "words"), BAD.items(), ids=lambda v: v if isinstance(v, str) else v[0])
def test_a_bad_file_is_one_line_that_says_where(tmp_path, file, words):
    name, text = file
    with pytest.raises(InputError) as caught:
        read_requests(written(tmp_path, name, text))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_file_is_one_line(tmp_path):
    with pytest.raises(InputError, match="cannot read: No such file"):
        read_requests(tmp_path / "none.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    # The ends of a Parquet file around what is none.
    (tmp_path / "d.parquet").write_bytes(b"PAR1" + bytes(range(200)) + b"\x90\0\0\0PAR1")
    with pytest.raises(InputError, match=r"d\.parquet: cannot read: \w+") as caught:
        read_requests(tmp_path / "d.parquet")
    assert "None" not in str(caught.value)
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_requests(tmp_path / "b.csv")


def test_invalid_rows_can_be_left_out(tmp_path):
    text = BURST + "1,ChatGPT,10,0,10,API log\n2,ChatGPT,10,5,15,API log\n3,ChatGPT,9,4,13,API log\n"
    found = read_requests(written(tmp_path, "b.csv", text), skip_invalid=True)
    assert found.prompt.tolist() == [10, 9]
    assert found.where(0).endswith("b.csv:3")


def test_rate_scale_divides_times_and_keeps_lengths():
    base = Requests.of([0.0, 1.0, 4.0], [1, 2, 3], [4, 5, 6])
    twice = base.scaled(2.0)
    assert twice.arrival_s.tolist() == [0.0, 0.5, 2.0]
    assert twice.prompt is base.prompt
    assert twice.rate == pytest.approx(2.0 * base.rate)
    with pytest.raises(InputError, match="--rate-scale"):
        base.scaled(0.0)


def test_arrivals_have_the_rate_and_the_burstiness_asked_for():
    for how, cv in (("poisson", 1.0), ("gamma(cv=2)", 2.0), ("fixed", 0.0)):
        gaps = np.diff(arrival_times(40_000, 5.0, how, np.random.default_rng(0)))
        # Standard error of the mean is cv/200, of the spread of a gamma of cv 2 about 2 %.
        assert gaps.mean() == pytest.approx(0.2, rel=0.04)
        assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.06, abs=1e-9)


def test_lengths_have_the_mean_asked_for():
    rng = np.random.default_rng(0)
    assert lengths(5, "512", "--x", rng).tolist() == [512] * 5
    for how, mean in (
        ("lognormal(mean=1000,cv=1)", 1000.5),
        ("exponential(mean=200)", 200.5),
        ("uniform(low=10,high=20)", 15.0),
    ):
        # Rounding up adds half a token.
        assert lengths(40_000, how, "--x", rng).mean() == pytest.approx(mean, rel=0.03)


def test_the_same_seed_gives_the_same_traffic():
    one, two = (
        synthetic(50, 2.0, arrivals="poisson", prompt="exponential(mean=9)", output="4", seed=7) for _ in range(2)
    )
    assert one.arrival_s.tolist() == two.arrival_s.tolist()
    assert one.prompt.tolist() == two.prompt.tolist()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rate": 0.0}, "--rate: 0 requests/s must be above 0"),
        ({"count": 0}, "--count: must be 1 to"),
        ({"arrivals": "posson"}, "did you mean 'poisson'"),
        ({"arrivals": "gamma"}, "--arrivals: gamma needs 'cv'"),
        ({"prompt_tokens": "lognormal(meen=3)"}, "did you mean 'mean'"),
        ({"prompt_tokens": "fixed(tokens=x)"}, "'x' is not a number"),
        ({"output_tokens": "uniform(low=9,high=3)"}, "--output-tokens: "),
        ({"output_tokens": "5 tokens"}, "write name(key=number,...)"),
        ({"prompt_tokens": None}, "--prompt-tokens: --rate needs it"),
        ({"output_tokens": None}, "--output-tokens: --rate needs it"),
        ({"rate": None}, "give --requests FILE, or --rate"),
    ],
)
def test_bad_synthetic_traffic_is_one_line(arguments, words):
    given = {"rate": 1.0, "count": 5, "arrivals": "poisson", "prompt_tokens": "5", "output_tokens": "5"} | arguments
    with pytest.raises(InputError) as caught:
        traffic(**given)
    assert words in str(caught.value)


def test_lengths_of_a_file_at_another_rate(tmp_path):
    path = written(tmp_path, "o.csv", OWN + "0,1,1\n1,2,2\n100,3,3\n")
    found = traffic(path, rate=4.0, count=2, arrivals="fixed")
    assert found.arrival_s.tolist() == [0.0, 0.25]
    assert found.prompt.tolist() == [1, 2]
    with pytest.raises(InputError, match="--prompt-tokens: the lengths are those of"):
        traffic(path, rate=4.0, count=2, arrivals="fixed", prompt_tokens="3")


def test_promises_are_read():
    found = parse_slo("ttft:p99<2s; TPOT:mean <= 60ms;")
    assert [(p.metric, p.statistic, p.limit_s) for p in found] == [
        ("ttft", "p99", 2.0),
        ("tpot", "mean", pytest.approx(0.06)),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ttft:p99>2s", "cannot read 'ttft:p99>2s'"),
        ("tfft:p99<2s", "did you mean 'ttft'"),
        ("ttft:p98<2s", "unknown statistic 'p98'"),
        ("ttft:p99<2", "needs a unit"),
        ("ttft:p99<0s", "must be above 0"),
        ("ttft:p99<1s;ttft:p99<2s", "given twice"),
        (";", "holds no promise"),
    ],
)
def test_a_bad_promise_is_one_line(text, words):
    with pytest.raises(InputError) as caught:
        parse_slo(text)
    assert str(caught.value).startswith("--slo: ")
    assert words in str(caught.value)


def test_reuse_takes_off_what_it_says():
    base = Requests.of(np.arange(1000.0), np.full(1000, 100), np.full(1000, 10))
    chunks = apply_reuse(base, "chunk-reuse(reused=0.8,recompute=0.25)", 0).requests
    assert chunks.reused.tolist() == [60] * 1000
    cache = apply_reuse(base, "semantic-cache(hit=0.4,lookup_ms=2)", 0)
    assert cache.answered + len(cache.requests) == 1000
    # A binomial of 1000 at 0.4 has a standard deviation of 15.
    assert abs(cache.answered - 400) < 60
    assert cache.requests.delay_s == pytest.approx(0.002)
    other = apply_reuse(base, "semantic-cache(hit=0.4,lookup_ms=2)", 1)
    assert other.requests.arrival_s.tolist() != cache.requests.arrival_s.tolist()
    grouped = Requests.of([0, 1, 2], [600, 600, 600], [1, 1, 1], ids=((5,), (3,), (5,)))
    assert apply_reuse(grouped, "prefix-groups", 0).requests.ids == ((3,), (5,), (5,))
    for text, words in (
        ("chunk-reuse(reused=2,recompute=0)", "must be from 0 to 1"),
        ("chunk-reuse", "needs 'reused'"),
        ("semantic-cache(hit=1,lookup_ms=2)", "no request is left"),
        ("prefix-groups", "hash_ids"),
        ("semantic", "did you mean 'semantic-cache'"),
    ):
        with pytest.raises(InputError, match="--reuse") as caught:
            apply_reuse(base, text, 0)
        assert words in str(caught.value)
