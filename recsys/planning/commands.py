"""The verb ``recsys plan``. Heavy libraries are imported inside: ``recsys --help`` answers at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer


def plan(
    file: Annotated[str, typer.Argument(help="Experiment file with a section `scale`: a path, or the name of a shipped "
                                             "one.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c", help="Override a key of the "
                                                        "experiment file. May be repeated.")] = None,
    speeds: Annotated[str, typer.Option(help="Card of speeds: a path, or the name of a shipped one.")] = "2026-11",
    offers: Annotated[int, typer.Option(min=1, help="Offers shown of each part, cheapest first.")] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole plan as JSON on standard output.")] = False,
) -> None:
    """What a job needs (tables, memory, accelerators, hours) and costs on each cloud, before it is run."""
    from recsys.config import load_config
    from recsys.planning import make_plan

    found = make_plan(load_config(file, overrides), speeds)
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(text(found, offers)))


def text(plan: Mapping[str, Any], offers: int) -> list[str]:
    """The plan as lines of plain text."""
    model = plan["model"]
    lines = [f"{plan['experiment']}: {model['kind']}, {model['tables_gib']:,.1f} GiB of tables with their optimizer, "
             f"{model['dense_parameters']:,} other parameters, {model['flops_per_row'] / 1e6:,.2f} MFLOP a row forward",
             "", f"{'table':<18} {'rows':>15} {'dim':>5} {'GiB':>10}  on 8 accelerators"]
    lines += [f"{t['table']:<18} {t['rows']:>15,} {t['dim']:>5} {t['gib']:>10,.3f}  {t['sharding_on_8']}"
              for t in plan["tables"]]
    for name, facts in plan["needs"].items():
        lines += ["", f"{name} needs"] if lines[-1] and not lines[-1].startswith(" ") else [f"{name} needs"]
        lines += [f"  {k.replace('_', ' ')}: {_number(v)}" for k, v in facts.items()]
    used: dict[str, None] = {}
    lines += ["", "offers, US dollars a year, cheapest list price first [spot]"]
    for component, found in plan["offers"].items():
        lines.append(component if found else f"{component}: no machine does it; see what is left out, and why")
        for row in found[:offers]:
            used |= dict.fromkeys(row["assumes"])
            lines.append("  " + _offer(row))
        if len(found) > offers:
            lines.append(f"  and {len(found) - offers} more")
    lines += ["", "everything at one provider, each part's cheapest [spot where there is one]"]
    lines += [f"  {t['provider']:<13} {t['on_demand']:>14,.0f}  [{t['spot']['low']:,.0f} to {t['spot']['high']:,.0f}]"
              + (f"  without {', '.join(t['missing'])}" if t["missing"] else "") + ("  *" if t["undated"] else "")
              for t in plan["totals"]]
    mille = plan["per_mille"]
    lines += ["", f"a thousand impressions, at an eCPM of {mille['reference_ecpm']:g} dollars"]
    parts = {"whole": f"everything ({mille['provider']})", "content": "open models and their index alone"}
    for name, words in parts.items():
        if name in mille:
            lines.append(f"  {words}: {mille[name]['usd']:.3g} dollars; pays from a lift of "
                         f"{mille[name]['break_even_lift']:.2g}")
    lines += ["", "what the figures rest on"]
    lines += [f"  {name}: {plan['assumptions'][name]}" for name in used]
    lines += ["", "left out", *(f"  {name}: {'; '.join(why)}" for name, why in plan["left_out"].items())]
    return [*lines, "  * a price without a date"]


def _offer(row: Mapping[str, Any]) -> str:
    spot = "no spot price" if row["spot"] is None else f"{row['spot']['low']:,.0f} to {row['spot']['high']:,.0f}"
    much = f"{row['machines']:,} x {row['hours']:,.1f} h" if row["machines"] else "kept all year"
    line = f"{row['provider']:<13} {row['offer']:<38} {much:<18} {row['on_demand']:>12,.0f}  [{spot}]"
    if "run_hours" in row:
        line += (f"  {row['run_hours'] * 60:,.1f} min a run, {row['rows_a_second'] / 1e6:,.2f} M rows/s, "
                 f"{row['gib_per_rank']:.1f} GiB a rank, bound by {row['bound']}")
    if "shards" in row:
        line += f"  {row['shards']} shards, as many machines as {row['because']} asks for"
    return f"{line}  ({', '.join(row['assumes'])})" + ("" if row["dated"] else "  *")


def _number(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if value >= 100 else f"{value:,.3g}"
