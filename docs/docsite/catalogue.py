"""Tables of what ships: policies, devices, models, engines, columns, terms."""

import re
from dataclasses import fields

from docsite.markdown import cell, code, number, table
from simulator.base import glossary as terms
from simulator.policies import POLICIES
from simulator.policies.card import Card


def policies() -> str:
    """A table per family, then every policy with parameters, mechanism and limits."""
    families: dict[str, list[Card]] = {}
    for name in POLICIES:
        families.setdefault(POLICIES[name].family, []).append(Card.of(name))
    out = [f"{len(POLICIES)} policies in {len(families)} families.\n"]
    for family, cards in families.items():
        out += [f"## {family[:1].upper() + family[1:]}\n"]
        listed = [[f"[`{c.policy.name}`](#policy-{_slug(c.policy.name)})", c.policy.summary] for c in cards]
        out += [table(["policy", "what it does"], listed)]
        out += [_policy(c) for c in cards]
    return "\n".join(out)


def _slug(name: str) -> str:
    return name.replace("_", "-")


def _policy(card: Card) -> str:
    p = card.policy
    out = [f"(policy-{_slug(p.name)})=", f"### `{p.name}`", "", _sentence(p.summary), ""]
    if p.alias_of:
        out += [f"Same mechanism as [`{p.alias_of}`](#policy-{_slug(p.alias_of)}), other defaults.", ""]
    else:
        out += [_mechanism(card.mechanism), ""]
    out += [p.citation, ""]
    if card.parameters:
        listed = [[code(x.name), code(x.default), x.range, x.meaning] for x in card.parameters]
        out += [table(["parameter", "default", "range", "meaning"], listed)]
    if p.kernels():
        known = [[code(k.name), k.believed, k.release or "-", k.title] for k in p.kernels()]
        out += [table(["kernel", "evidence", "release", "what it does"], known)]
    rewrites = ", ".join(sorted(p.aspects)) or "nothing"
    goes = "; ".join(f"{k}: {v}" for k, v in card.goes_with.items())
    out += [f"Rewrites: {rewrites}. Goes with: {goes}.", ""]
    if p.name != "dense":
        out += [f"Software: {_sentence(card.runs_in, capital=False)}", ""]
    if p.not_modelled:
        out += [f"Not modelled: {_sentence(p.not_modelled, capital=False)}", ""]
    return "\n".join(out)


def _mechanism(text: str) -> str:
    """How a policy works, as Markdown."""
    pieces = re.split(r"(``?[^`]+``?)", re.sub(r" ?\[\d+\]_", "", text))
    plain = [re.sub(r"([*_<])", r"\\\1", piece) for piece in pieces[::2]]
    pieces[::2] = plain
    return "".join(pieces) + "\n"


def _sentence(text: str, *, capital: bool = True) -> str:
    text = cell(text).replace("*", r"\*").replace("<", r"\<")
    text = text if text.endswith(".") else text + "."
    return text[:1].upper() + text[1:] if capital else text


def devices() -> str:
    """The catalogue of devices as `python -m simulator.devices` prints it."""
    from simulator.device.catalogue import list_devices, load
    from simulator.devices import row_of

    body = []
    for name in list_devices():
        r = row_of(load(name))
        numbers = ("capacity_gb", "bandwidth_gb_per_s", "tflop16_per_s", "tflop8_per_s", "link_gb_per_s", "power_w")
        body.append(
            [code(name), f"{r['vendor']} {r['arch']}", *(number(r[k]) for k in numbers), ", ".join(r["measured"])]
        )
    headers = ["device", "architecture", "GB", "GB/s", "16-bit TFLOP/s", "8-bit TFLOP/s", "link GB/s", "W"]
    rule = table([*headers, "fitted families"], body)
    return f"{len(body)} devices.\n\n{rule}"


def models() -> str:
    """Bundled models."""
    from simulator.model.hub import find_model, list_models
    from simulator.models import row_of

    body = []
    for name in list_models():
        r = row_of(find_model(name))
        body.append(
            [
                code(name),
                r["architecture"],
                f"{r['params'] / 1e9:.3g}",
                f"{r['active_params'] / 1e9:.3g}",
                r["layers"],
                r["heads"],
                r["kv_heads"],
                f"{r['max_context']:,}",
                f"{r['kv_bytes_per_token']:,.0f}",
            ]
        )
    headers = [
        "model",
        "architecture",
        "parameters [10⁹]",
        "active [10⁹]",
        "layers",
        "heads",
        "KV heads",
        "context",
        "KV [B/token]",
    ]
    return f"{len(body)} models.\n\n" + table(headers, body)


def engines() -> str:
    """Serving engines and what each adds to the kernels."""
    from simulator.roofline.engine import Engine, load_engines

    shown = [f.name for f in fields(Engine) if f.name.endswith("_s")]
    body = [
        [code(name), *(number(float(f"{getattr(e, k) * 1e6:.3g}")) for k in shown)]
        for name, e in load_engines().items()
    ]
    return table(["engine", *(f"{k.removesuffix('_s').replace('_', ' ')} [µs]" for k in shown)], body)


def scenario() -> str:
    """Fields of a scenario: flags of predict, parameters of a link, arguments in Python."""
    from simulator.scenario.fields import FIELDS, REQUIRED

    body = []
    for f in FIELDS.values():
        default = "required" if f.default is REQUIRED else code(f.default)
        flags = ", ".join(code(flag) for flag in (f.flag, f.about.short) if flag)
        body.append([code(f.name), flags, default, f.about.help])
    return table(["field", "flag", "default", "meaning"], body)


def sweep_columns() -> str:
    """Columns of a sweep's file."""
    from simulator.results.columns import COLUMNS

    body = [[code(k), c.kind, c.unit, c.meaning] for k, c in COLUMNS.items()]
    return table(["column", "kind", "unit", "meaning"], body)


def serve_columns() -> str:
    """Columns of a run's row, of serve and plan."""
    from simulator.serving.output import COLUMNS, SERVE_COLUMNS

    return _units({**COLUMNS, **SERVE_COLUMNS})


def request_columns() -> str:
    """Columns of the per-request file."""
    from simulator.serving.output import RECORDS

    return _units(RECORDS)


def _units(columns) -> str:
    body = [[code(k), unit, meaning] for k, (unit, meaning) in columns.items()]
    return table(["column", "unit", "meaning"], body)


def trace_columns() -> str:
    """What a trace holds: tensors and statistics."""
    from simulator.trace.schema import STATISTICS, TENSORS

    def text(value: str) -> str:
        return value.replace("*", r"\*")

    tensors = table(["tensor", "meaning"], [[code(k), text(v)] for k, v in TENSORS.items()])
    body = [[code(k), text(s.meaning), text(s.x), text(s.value)] for k, s in STATISTICS.items()]
    return tensors + "\n" + table(["statistic", "meaning", "x", "value"], body)


def bench_columns() -> str:
    """Columns of `sparse_kernels.bench`."""
    from sparse_kernels.bench_rows import COLUMNS

    return ", ".join(code(c) for c in COLUMNS) + "\n"


def glossary() -> str:
    """Terms, one text each, as command-line help and the dashboard show them."""
    lines = ["```{glossary}"]
    for term, meaning in terms.TERMS.items():
        lines += [term, "    " + " ".join(meaning.split()).replace("*", r"\*"), ""]
    return "\n".join([*lines, "```"]) + "\n"
