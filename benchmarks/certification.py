"""The full certification, and all that quotes it: docs/certification.md, its picture, the certificate of the package.

    RECSYS_DATA_HOME=... python benchmarks/certification.py [--replications 400] [--seed 2] [--jobs 2]

``recsys certify`` over the whole grid; a killed run goes on from the cells in --work. Writes
benchmarks/results/certification.json, docs/certification.md, docs/images/certification.png and
recsys/evaluation/certify/certificate.json.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from common import facts, save

from recsys.evaluation.certify.certificate import SHIPPED, shipped_of
from recsys.evaluation.certify.commands import summary
from recsys.evaluation.certify.page import page, picture
from recsys.evaluation.certify.run import certify
from recsys.log import setup_logging
from recsys.stage import write_atomic, write_json

DOCS = Path(__file__).parents[1] / "docs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("work/certify"))
    parser.add_argument("--replications", type=int, default=400)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    setup_logging()
    home = os.environ.get("RECSYS_DATA_HOME")
    result = certify(args.work, False, args.replications, args.seed, args.jobs, Path(home) if home else None)
    print(save("certification", result))
    picture(result, DOCS / "images" / "certification.png")
    write_atomic(DOCS / "certification.md", page({**result, "facts": facts()}, "images/certification.png"))
    write_json(SHIPPED, shipped_of(result))
    print(summary(result, DOCS))


if __name__ == "__main__":
    main()
