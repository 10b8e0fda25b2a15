"""The verb ``recsys power``; ``recsys ab``, which writes a page as well, is :mod:`recsys.experiment.ab`'s.

Heavy libraries are imported inside, so that ``--help`` answers at once.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from recsys.errors import InputError, Refused

_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


def power(
    base: Annotated[float, typer.Option(help="The baseline's rate per unit, such as 0.0035.")],
    lift: Annotated[float | None, typer.Option(help="Relative lift to find; 0.1 is +10 %.")] = None,
    units: Annotated[int | None, typer.Option(help="Units per arm: print the smallest lift they find instead.")] = None,
    alpha: Annotated[float, typer.Option(help="Level, two-sided.")] = 0.05,
    chance: Annotated[float, typer.Option("--power", help="Chance to find the lift.")] = 0.8,
    as_json: _Json = False,
) -> None:
    """How many units each arm needs to find a lift of a rate, or which lift a number of units can find."""
    from recsys.evaluation.ab.design import detectable_lift, units_per_arm

    if (lift is None) == (units is None):
        raise InputError("one question at a time", file="power", expected="either --lift or --units")
    result: dict[str, Any] = {"base": base, "alpha": alpha, "power": chance}
    try:
        if lift is not None:
            result |= {"lift": lift, "units_per_arm": units_per_arm(base, lift, alpha, chance)}
        else:
            result |= {"units_per_arm": units, "lift": detectable_lift(base, int(units or 0), alpha, chance)}
    except Refused as reason:
        if not as_json:
            raise
        result = {"refused": str(reason)}
    text = "" if as_json else (
        f"{result['units_per_arm']:,} units per arm find a relative lift of {result['lift']:+.2%} on a rate of "
        f"{base:g} with {chance:.0%} power at alpha {alpha:g}, looked at once")
    typer.echo(json.dumps(result, indent=2, allow_nan=False) if as_json else text)
    if "refused" in result:
        raise typer.Exit(Refused.exit_code)
