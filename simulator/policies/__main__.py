"""The catalogue of policies: ``python -m simulator.policies [NAME]``."""

from __future__ import annotations

from textwrap import shorten
from typing import Annotated

import typer

from simulator.base import console
from simulator.ops.union_law import in_words
from simulator.policies.base import Policy
from simulator.policies.card import Card
from simulator.policies.grammar import POLICIES

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def command(
    name: Annotated[str | None, typer.Argument(help="one policy, with its parameters")] = None,
    json_: Annotated[bool, typer.Option("--json", help='{"rows": [...]} on stdout')] = False,
) -> None:
    """List the policies, or show one with its parameters, mechanism and limits."""
    cards = [Card.of(p) for p in ([name] if name else POLICIES)]
    if json_:
        console.out_json({"rows": [c.to_dict() for c in cards]})
    elif name:
        _show(cards[0])
    else:
        console.table(
            f"{len(cards)} policies",
            ["policy", "family", "parameters", "what it does", "citation"],
            [
                [c.policy.name, c.policy.family, *(shorten(text, width) for text, width in _wide(c))]
                for c in sorted(cards, key=lambda c: c.policy.family)
            ],
            left=5,
            note="join with +: 'mustafar(keep=0.3)+w4a16'; two that rewrite the same thing are refused",
        )


def _wide(card: Card) -> tuple[tuple[str, int], ...]:
    """Long cells of a policy's line, and the characters they may take; NAME and --json show all."""
    p = card.policy
    defaults = ", ".join(f"{x.name}={x.default}" for x in card.parameters)
    alias = f" (as {p.alias_of})" if p.alias_of else ""
    return (defaults or "-", 60), (p.summary + alias, 80), (p.citation, 46)


def _show(card: Card) -> None:
    p = card.policy
    console.out(f"{p.name}: {p.summary}")
    if p.alias_of:
        console.out(f"same mechanism as {p.alias_of}, other defaults")
    console.out(f"{p.citation}\n\n    {(p.__doc__ or '').strip()}\n")
    if card.parameters:
        console.table(
            "Parameters",
            ["name", "default", "range", "meaning"],
            [[x.name, f"{x.default}", x.range, x.meaning] for x in card.parameters],
            left=4,
        )
    if p.kernels():
        console.table(
            "Kernels (--kernel NAME; published is the first, ideal the bound of any)",
            ["name", "evidence", "release", "what it does"],
            [[k.name, k.believed, k.release or "-", k.title] for k in p.kernels()],
            left=4,
        )
    console.table("Goes with", ["", ""], card.goes_with.items(), left=2)
    if card.unions:
        console.out(f"union over rows: {in_words(card.unions)}; --trace DIR: as measured there")
    _show_evidence(p)
    if p.not_modelled:
        console.out(f"not modelled: {p.not_modelled}")
    if p.name != "dense":
        console.out(f"software: {card.runs_in}")


def _show_evidence(policy: type[Policy]) -> None:
    """What a small model lost under the policy, which answers where nothing was published."""
    from simulator.policies import parse
    from simulator.results.loss_lookup import small_model

    rows = [
        [row.policy, f"{f.context:,.0f}", f"{ratio:.3f}", f"{row.log_ratio_se:.3f}", f"{row.agreement:.1%}"]
        for f in small_model()
        for row in f.rows
        if parse(row.policy).members[0].name == policy.name
        for ratio in (row.perplexity / row.dense_perplexity,)
    ]
    if rows:
        console.table(
            f"Small-model evidence of what it loses: measured on {small_model()[0].model}",
            ["policy", "context", "perplexity over dense's", "standard error", "same token"],
            rows,
            left=1,
        )


if __name__ == "__main__":
    console.main(app)
