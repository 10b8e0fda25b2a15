"""How large a job is and how fast it must be: what ``recsys plan`` reckons with."""

from __future__ import annotations

from pydantic import Field, model_validator

from recsys.config.base import Strict


class TableSize(Strict):
    """One embedding table."""

    rows: int = Field(ge=1)
    length: float = Field(1.0, gt=0, description="rows that a bag looks up on average")


class ScaleConfig(Strict):
    """Counts a year, and deadlines. Everything is the whole system's, not one machine's."""

    tables: dict[str, TableSize] = Field(min_length=1, description="embedding tables by feature")
    dense: int = Field(0, ge=0, description="dense features")
    training_rows: int = Field(ge=1, description="rows that one training run reads in one epoch")
    training_hours: float | None = Field(None, gt=0, description="a run must end within; null: as many accelerators as "
                                                                 "the tables need")
    runs_a_year: float = Field(1.0, gt=0)
    machines: tuple[str, ...] = Field((), description="rows of the price card to reckon with; default: all usable ones "
                                                      "whose speed is known")
    users: int = Field(1, ge=1)
    user_bytes: float = Field(500.0, gt=0, description="a user's features and history in the feature store")
    ads: int = Field(1, ge=1, description="ads that are live")
    new_ads_a_year: float = Field(0.0, ge=0, description="ads embedded besides a whole refresh")
    tokens_an_ad: float = Field(60.0, gt=0)
    parameters: dict[str, float] = Field(default_factory=dict, description="encoder of the experiment -> parameters of "
                                                                            "its model")
    dims: dict[str, int] = Field(default_factory=dict, description="encoder -> length of its vectors")
    refreshes_a_year: float = Field(1.0, ge=0, description="times a year that all live ads are embedded anew")
    refresh_hours: float = Field(24.0, gt=0, description="a whole refresh must end within")
    impressions_a_year: float = Field(ge=1)
    slots: int = Field(1, ge=1, description="ads shown in answer to a request")
    candidates: int = Field(1, ge=1, description="ads ranked in answer to a request")
    peak: float = Field(2.0, ge=1, description="requests a second at the busiest hour, in multiples of the mean")
    replicas: int = Field(2, ge=1, description="copies of every shard of the index and of the tables that serve")
    log_bytes: float = Field(200.0, gt=0, description="of one logged impression, compressed")
    log_months: float = Field(1.0, ge=0, description="how long logs are kept")

    @model_validator(mode="after")
    def _encoders_are_whole(self) -> ScaleConfig:
        if set(self.parameters) != set(self.dims):
            raise ValueError(f"parameters and dims: of the same encoders, not {sorted(self.parameters)} and "
                             f"{sorted(self.dims)}")
        return self
