"""Statistics of activations, attention and keys against brute force in plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch not installed")

from simulator.base.errors import InputError  # noqa: E402
from simulator.ops.union import frequency_density  # noqa: E402
from simulator.trace import KEEPS, MASSES, ROWS  # noqa: E402
from traces import attention, kv, magnitudes, sets  # noqa: E402
from traces.means import ALL, Means  # noqa: E402
from traces.observer import StatisticsObserver  # noqa: E402
from traces.sampling import GROUPS, sample  # noqa: E402

pytestmark = pytest.mark.torch


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_quantiles_and_thresholds(dtype: torch.dtype) -> None:
    x = (randn(400, 13) * 3).relu().to(dtype)
    counts = magnitudes.histogram(x[:100])
    counts += magnitudes.histogram(x[100:])
    assert int(counts.sum()) == x.numel()
    assert int(counts[0]) == int((x == 0).sum())
    ordered = np.sort(x.abs().float().numpy().ravel())
    probabilities = [0.01, 0.3, 0.5, 0.9, 1.0]
    found = magnitudes.quantile(counts, torch.tensor(probabilities, dtype=torch.float64)).numpy()
    exact = [ordered[math.ceil(p * len(ordered) - 1e-9) - 1] for p in probabilities]
    # bfloat16 has 8 significant bits: rounding moves a magnitude by at most 2^-8 of itself.
    np.testing.assert_allclose(found, exact, rtol=0 if dtype == torch.bfloat16 else 2**-8)
    limits = magnitudes.thresholds(counts, torch.tensor(KEEPS, dtype=torch.float64))
    shares = [float((x.abs().to(torch.bfloat16).float() >= t).float().mean()) for t in limits]
    for keep, share, t in zip(KEEPS, shares, limits.tolist(), strict=True):
        assert share >= keep - 1e-9
        larger = x.abs().to(torch.bfloat16).float()
        assert float((larger > t).float().mean()) < keep, "the next larger threshold keeps too few"


def test_thresholds_are_zero_where_zeros_would_be_kept() -> None:
    x = torch.cat([torch.zeros(80), torch.ones(20)])
    limits = magnitudes.thresholds(magnitudes.histogram(x), torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))
    assert limits.tolist() == [1.0, 1.0, 0.0]


def test_infinities_are_refused_with_what_to_do() -> None:
    observer = StatisticsObserver({}, heads=1, kv_heads=1, seed=0)
    observer.begin(0, 1, 64, calibration=1)
    x = torch.ones(1, 64, 4)
    observer.activation(0, "ffn.in", x)
    observer.activation(0, "ffn.down", torch.where(torch.arange(4) == 2, torch.inf, x))
    with pytest.raises(InputError, match=r"ffn\.down hold infinities or NaN; use --dtype bf16"):
        observer.calibrated()


def test_windows_and_overlap_against_sets() -> None:
    x = randn(3, 32, 17).abs()
    limits = torch.tensor([0.3, 1.0, 2.5])
    own = sets.kept(x, limits)
    for size in (2, 8, 32):
        found = sets.kept(sets.window_maxima(x, size), limits).sum(1)
        for level, t in enumerate(limits.tolist()):
            expected = 0
            for w in range(3):
                for start in range(0, 32, size):
                    used = set()
                    for token in range(start, start + size):
                        used |= {j for j in range(17) if x[w, token, j] >= t}
                    expected += len(used)
            assert int(found[level]) == expected
    for distance in (1, 4):
        both = sets.kept(sets.pair_minima(x, distance), limits)
        total, n = sets.overlap(both, own, distance)
        for level, t in enumerate(limits.tolist()):
            shares = []
            for w in range(3):
                for token in range(distance, 32):
                    now = {j for j in range(17) if x[w, token, j] >= t}
                    before = {j for j in range(17) if x[w, token - distance, j] >= t}
                    if now:
                        shares.append(len(now & before) / len(now))
            assert int(n[level]) == len(shares)
            assert float(total[level]) == pytest.approx(sum(shares), rel=1e-12)


@pytest.mark.parametrize("batch", [1, 3, 8, 16])
def test_unions_do_not_depend_on_the_batch(batch: int) -> None:
    sequences, groups, units = 48, 2, 11
    x = randn(sequences, groups, units).abs()
    limits = torch.tensor([0.5, 1.5])
    counts = (1, 2, 4, 16, 48)
    unions = sets.UnionOfRows(counts, torch.zeros(len(counts), groups, units))
    total = torch.zeros(2, len(counts), dtype=torch.int64)
    blocks = torch.zeros(len(counts), dtype=torch.int64)
    for start in range(0, sequences, batch):
        more, n = unions.add(x[start : start + batch], limits)
        total += more
        blocks += n
    for i, count in enumerate(counts):
        assert int(blocks[i]) == sequences // count * groups
        for level, t in enumerate(limits.tolist()):
            expected = 0
            for group in range(groups):
                for start in range(0, sequences, count):
                    used = set()
                    for s in range(start, start + count):
                        used |= {j for j in range(units) if x[s, group, j] >= t}
                    expected += len(used)
            assert int(total[level, i]) == expected


def test_union_of_independent_neurons_follows_the_closed_form() -> None:
    units, blocks = 4000, 6
    p = np.random.default_rng(0).beta(0.3, 3.0, units)
    draws = torch.rand(256 * blocks, 1, units, generator=generator(1)) < torch.from_numpy(p)
    unions = sets.UnionOfRows(ROWS, torch.zeros(len(ROWS), 1, units))
    total, n = unions.add(draws.float(), torch.tensor([sets.NON_ZERO]))
    measured = (total[0].double() / n / units).numpy()
    law = frequency_density(p, np.array(ROWS, float))
    # Binomial: a density d over `units` neurons and n draws has a deviation below sqrt(d(1-d)/(units n)); four of them.
    deviation = np.sqrt(law * (1 - law) / (units * n.numpy()))
    assert (np.abs(measured - law) < 4 * deviation).all()


def softmax_row(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_probabilities_against_a_materialised_matrix(softcap: float | None) -> None:
    heads, kv_heads, tokens, width = 4, 2, 20, 6
    query, key = randn(heads, tokens, width), randn(kv_heads, tokens, width, seed=1)
    rows = torch.tensor([0, 7, 19])
    allowed = torch.ones(tokens, tokens, dtype=torch.bool).tril().triu(-5)
    found = {
        "causal": attention.probabilities(query, key, rows, softcap=softcap),
        "window": attention.probabilities(query, key, rows, mask=allowed[None], softcap=softcap),
        "added": attention.probabilities(
            query, key, rows, softcap=softcap, mask=torch.zeros(1, tokens, tokens).masked_fill(~allowed, -torch.inf)
        ),
    }
    torch.testing.assert_close(found["window"], found["added"])
    for h in range(heads):
        for i, row in enumerate(rows.tolist()):
            scores = (query[h, row] @ key[h // 2].T / math.sqrt(width)).numpy()
            if softcap:
                scores = np.tanh(scores / softcap) * softcap
            p = np.zeros(tokens)
            p[: row + 1] = softmax_row(scores[: row + 1])
            np.testing.assert_allclose(found["causal"][h, i], p, atol=1e-6)
            p = np.zeros(tokens)
            start = max(0, row - 5)
            p[start : row + 1] = softmax_row(scores[start : row + 1])
            np.testing.assert_allclose(found["window"][h, i], p, atol=1e-6)


def test_attention_statistics_against_loops() -> None:
    heads, tokens = 2, 40
    rows = torch.arange(32, 40)
    query, key = randn(heads, tokens, 8) * 2, randn(heads, tokens, 8, seed=2)
    p = attention.probabilities(query, key, rows)
    needed = attention.tokens_for_mass(p, MASSES)
    entropy = attention.entropy(p)
    near = attention.near_share(p, rows, (1, 5, 40))
    for h in range(heads):
        for i, row in enumerate(rows.tolist()):
            q = p[h, i].double().numpy()
            assert float(entropy[h, i]) == pytest.approx(-sum(v * math.log(v) for v in q if v > 0), rel=1e-5)
            for m, mass in enumerate(MASSES):
                left, n = mass, 0
                for v in sorted(q, reverse=True):
                    if left <= 0:
                        break
                    left, n = left - v, n + 1
                assert int(needed[h, i, m]) == n
            for d, distance in enumerate((1, 5, 40)):
                expected = sum(q[j] for j in range(1, row + 1) if row - j < distance)
                assert float(near[h, i, d]) == pytest.approx(expected, abs=1e-6)


def test_cache_hits_against_a_simulated_cache() -> None:
    heads, steps, tokens, selected = 2, 8, 30, 4
    p = torch.rand(heads, steps, tokens, generator=generator(5))
    order = p.argsort(dim=-1, descending=True, stable=True)
    for size in (4, 7, 15):
        found = attention.cache_hits(order, selected, size)
        for h in range(heads):
            # Most recently used first; the cache is its first `size` tokens.
            recent = order[h, 0].tolist()
            for step in range(1, steps):
                cached = set(recent[:size])
                top = order[h, step, :selected].tolist()
                assert float(found[h, step - 1]) == pytest.approx(len(cached & set(top)) / selected)
                recent = top + [t for t in recent if t not in top]
    same = attention.cache_hits(order, selected, selected)
    assert torch.equal(same, attention.repeated_share(order, [selected])[..., 0])


def test_pruning_rounding_rank_and_channels_against_loops() -> None:
    heads, tokens, width = 2, 40, 12
    x = randn(heads, tokens, width, seed=7)
    lost = kv.dropped_energy(x, KEEPS)
    for i, keep in enumerate(KEEPS):
        n = math.ceil(keep * width - 1e-9)
        for t in range(tokens):
            v = x[0, t].double().numpy()
            kept = np.argsort(-np.abs(v), kind="stable")[:n]
            expected = sum(v[j] ** 2 for j in range(width) if j not in kept)
            assert float(lost[0, t, i]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    for bits in (2, 4, 8):
        per_channel = kv.rounded(x, bits, axis=1).numpy()
        for c in range(width):
            for start in (0, 32):
                v = x[1, start : start + 32, c].double().numpy()
                step = (v.max() - v.min()) / (2**bits - 1)
                expected = np.round((v - v.min()) / step) * step + v.min()
                np.testing.assert_allclose(per_channel[1, start : start + 32, c], expected, atol=1e-5)
        per_token = kv.rounded(x, bits, axis=2)
        span = x.amax(-1) - x.amin(-1)
        # Rounding to the nearest of 2^bits levels moves no element by more than half a level.
        assert ((per_token - x).abs().amax(-1) <= span / (2**bits - 1) / 2 + 1e-5).all()
    moment = kv.second_moment(x[:, :25]) + kv.second_moment(x[:, 25:])
    energy = kv.rank_energy(moment, [1, 3, width])
    for h in range(heads):
        s = np.linalg.svd(x[h].double().numpy(), compute_uv=False) ** 2
        np.testing.assert_allclose(energy[h], [s[:r].sum() / s.sum() for r in (1, 3, width)])
    q = randn(heads, tokens, width, seed=8)
    share = kv.channel_share(q.abs().double().mean(1), x.abs().double().mean(1), [0.25, 1.0])
    pairs = torch.einsum("hic,hjc->hijc", q.double(), x.double()).abs().mean((1, 2))
    top = pairs.sort(-1, descending=True).values
    np.testing.assert_allclose(share[:, 0], top[:, :3].sum(-1) / top.sum(-1))
    np.testing.assert_allclose(share[:, 1], 1.0)


def test_a_constant_group_rounds_to_itself() -> None:
    x = torch.full((1, 40, 4), 2.5)
    assert torch.equal(kv.rounded(x, 2, axis=1), x)


def test_means_are_weighted_and_restored_exactly() -> None:
    state: dict[str, torch.Tensor] = {}
    means = Means(state)
    key = (0, "kv.k", "kept_error")
    for i in range(5):
        total = torch.full((2, 1, 3), 0.1 * i, dtype=torch.float64)
        means.add(key, (2, 1, 3), (ALL,) * 3, total, 2.0, 7)
    copied = Means({k: v.clone() for k, v in state.items()})
    for m in (means, copied):
        m.add(key, (2, 1, 3), (0, 0, 1), torch.tensor(1.0), 1.0, 1)
    (first,), (second,) = list(means), list(copied)
    assert first[0] == second[0] == key
    assert all(torch.equal(a, b) for a, b in zip(first[1:], second[1:], strict=True))
    assert float(first[1][0, 0, 1] / first[2][0, 0, 1]) == pytest.approx(2.0 / 11.0)
    assert int(first[3][1, 0, 0]) == 35


def test_samples_are_fixed_by_seed_and_number() -> None:
    a, b, other = sample(3, 5, 4, 64), sample(3, 5, 4, 64), sample(3, 6, 4, 64)
    assert torch.equal(a.rows, b.rows)
    assert torch.equal(a.tokens, b.tokens)
    assert not torch.equal(a.rows, other.rows)
    x = torch.arange(4 * 64.0).reshape(4, 64, 1)
    rows = a.union_rows(x)
    assert rows.shape == (4, GROUPS, 1)
    # Row i of the batch gives only its own tokens.
    assert (rows[..., 0] // 64 == torch.arange(4.0)[:, None]).all()
    windows = a.windows(x)[..., 0]
    assert (windows.diff(dim=1) == 1).all()
