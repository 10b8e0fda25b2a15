"""What the shapes of ``lift.json`` and ``statement.json`` are made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]


class Open(BaseModel):
    """Base of every object: types are not converted, no NaN or infinity, further keys allowed."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class Ends(Open):
    """The ends of an interval."""

    low: float
    high: float


class Interval(Ends):
    """An estimate and its interval; a lift is a fraction (0.05 is 5 %)."""

    estimate: float
