"""A plain service of the same model: FastAPI, pydantic, and the eager torch model, as tutorials have it.

    python benchmarks/peers/fastapi_plain.py MODEL PORT

Rows as JSON objects in pydantic models of named, typed fields; a plain ``def`` route, which FastAPI runs in its thread
pool; the model in float32.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, create_model

from recsys.serving.scorer import Scorer


def app(folder: Path) -> FastAPI:
    scorer = Scorer.load(folder)
    row = create_model("Row", **{n: (float if k == "number" else int, ...)  # type: ignore[call-overload]
                                 for n, k in scorer.kinds.items()})
    request = create_model("ScoreRequest", rows=(list[row], ...))  # type: ignore[valid-type]

    class Answer(BaseModel):
        scores: list[float]

    service = FastAPI()

    def score(body: request) -> Answer:  # type: ignore[valid-type]
        table = pa.Table.from_pylist([r.model_dump() for r in body.rows])
        return Answer(scores=scorer.score(table)["click"].tolist())

    score.__annotations__ = {"body": request, "return": Answer}
    service.post("/score", response_model=Answer)(score)

    @service.get("/v2/health/ready")
    def ready() -> dict[str, bool]:
        return {"ready": True}

    return service


if __name__ == "__main__":
    uvicorn.run(app(Path(sys.argv[1])), port=int(sys.argv[2]), log_level="warning", access_log=False)
