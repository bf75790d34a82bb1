"""Everything that reads what somebody else wrote: a strategy of cases for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fuzz_answered import answer_reports, links, pages, sweep_reports, traces, uploads
from fuzz_asked import (
    claim_files,
    configs,
    fit_files,
    gguf_files,
    measured,
    policies,
    profiles,
    ranges,
    requests,
    sweep_files,
    traffic,
)

TARGETS: Mapping[str, Any] = {
    "profiles": profiles(),
    "configs": configs(),
    "gguf": gguf_files(),
    "policies": policies(),
    "ranges": ranges(),
    "sweep-files": sweep_files(),
    "traces": traces(),
    "requests": requests(),
    "traffic": traffic(),
    "sweep-reports": sweep_reports(),
    "answer-reports": answer_reports(),
    "claims": claim_files(),
    "links": links(),
    "uploads": uploads(),
    "measured": measured(),
    "fits": fit_files(),
    "pages": pages(),
}
"""Parser families by name."""
