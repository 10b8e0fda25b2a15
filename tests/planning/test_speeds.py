from __future__ import annotations

import json
from pathlib import Path

import pytest

from recsys.errors import InputError
from recsys.planning.speeds import load_speeds

ROOT = Path(__file__).parents[2]


def test_what_is_called_measured_stands_in_the_result_file() -> None:
    card = load_speeds()
    for rate, value in ((card.cpu.train, card.cpu.train.rows_a_second),
                        (card.cpu.embed, card.cpu.embed.tokens_a_second),
                        (card.cpu.input, card.cpu.input.microseconds_a_row),
                        (card.cpu.search, card.cpu.search.queries_a_second)):
        assert rate.basis == "measured"
        found = json.loads((ROOT / card.sources[rate.source]).read_text())
        for key in rate.key.split("."):
            found = found[key]
        assert value == pytest.approx(found)


def test_a_number_without_a_source_is_refused(tmp_path: Path) -> None:
    text = (ROOT / "data" / "speeds" / "2026-11.yaml").read_text()
    file = tmp_path / "card.yaml"
    file.write_text(text.replace("basis: published\n  source: mlperf", "basis: published\n  source: hearsay"))
    with pytest.raises(InputError, match="hearsay"):
        load_speeds(str(file))
    file.write_text(text.replace("accelerator: H100-80GB\n", "accelerator: H1\n"))
    with pytest.raises(InputError, match="H1"):
        load_speeds(str(file))
    with pytest.raises(InputError, match="2026-11"):
        load_speeds("nowhere")
