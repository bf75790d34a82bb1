"""Dispatch and combine of expert parallelism: bytes by hand, the fit that answers, and the unit of the rows."""

import numpy as np
import pandas as pd
import pytest

from simulator.device.catalogue import load
from simulator.fitting import alltoall
from simulator.ops.expert_exchange import ExpertExchange
from simulator.roofline.engine import get_engine
from simulator.roofline.expert_exchange import exchange_demand, exchange_time
from simulator.roofline.timing import time_op


def exchange(op="dispatch", tokens=1024.0, per_expert=False, element_bytes=1.0, sms=24.0):
    sizes = {"hidden": 7168.0, "top_k": 8.0, "n_ranks": 8, "sms": sms}
    return ExpertExchange(role="r", op=op, tokens=tokens, element_bytes=element_bytes, per_expert=per_expert, **sizes)


def test_a_token_goes_once_to_every_rank_that_has_one_of_its_experts():
    assert exchange().copies == pytest.approx(7 * (1 - (7 / 8) ** 8))
    assert exchange().link_bytes == pytest.approx(1024 * 7168 * 7 * (1 - (7 / 8) ** 8))


def test_low_latency_kernels_send_a_copy_for_every_expert():
    assert exchange(per_expert=True).copies == 7.0


def test_time_by_hand():
    device = load("h100-sxm")
    d = exchange_demand(exchange(), device)
    link = d.link_bytes / (0.5 * device.link_for(8).bandwidth_bytes_per_s)
    copied, rows = d.link_bytes / (24 * 1e10), 1024 * 1e-9
    coef = {"launch_s": 2e-5, "share": 0.5, "token_s": 1e-9, "sm_rate": 1e10}
    assert exchange_time(d, coef).total_s == pytest.approx(2e-5 + (link**4 + copied**4 + rows**4) ** 0.25)


def test_never_faster_than_the_link():
    device = load("h100-sxm")
    d = exchange_demand(exchange(tokens=1e6), device)
    fast = {"launch_s": 0.0, "share": 100.0, "token_s": 0.0, "sm_rate": 1e99}
    assert exchange_time(d, fast).total_s == d.link_bytes / device.link_for(8).bandwidth_bytes_per_s


@pytest.mark.parametrize("op", ["dispatch", "combine"])
def test_measured_kernels_answer(op):
    tokens = np.array([64.0, 1024.0, 16384.0])
    at = exchange(op, tokens, element_bytes=1.0 if op == "dispatch" else 2.0)
    t = time_op(at, load("h100-sxm"), get_engine("sglang"))
    assert t.fit.library.startswith("sglang")
    assert (np.diff(t.total_s) > 0).all()
    assert 5e-4 < t.total_s[2] < 1e-2


def test_rows_of_two_engines_are_read_in_seconds():
    row = {
        "source": "aisimulate",
        "device": "H100-SXM",
        "op": "dispatch",
        "comm_dtype": "default",
        "ep_size": 8,
        "hidden_size": 7168,
        "topk": 8,
        "num_experts": 256,
        "num_tokens": 8,
        "node_num": 1,
    }
    sglang = row | {
        "framework": "sglang",
        "comm_backend": "deepep-ll",
        "kernel": "sglang-0.5.12:deepep",
        "time_s": 1e-5,
    }
    vllm = row | {"framework": "vllm", "comm_backend": "deepep_ll", "kernel": "vllm-0.24.0:deepep", "time_s": 0.06}
    rows = alltoall.prepare(pd.DataFrame([sglang, vllm]))
    assert rows.set_index("source")["time_s"].to_dict() == pytest.approx(
        {"aisimulate/sglang": 1e-5, "aisimulate/vllm": 6e-5}
    )
    assert rows["per_expert"].all()


def test_the_sms_of_a_kernel_are_a_size_not_another_kernel():
    rows = pd.DataFrame({"comm_backend": ["deepep-normal-sms8"]})
    assert rows["comm_backend"].str.extract(alltoall.SMS)[0].tolist() == ["8"]
    few, many = (time_op(exchange(tokens=8192.0, sms=n), load("h100-sxm"), get_engine("sglang")) for n in (4.0, 24.0))
    assert few.total_s > 1.5 * many.total_s
