from __future__ import annotations

import hashlib
import unicodedata

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.datasets.text import content_hash, content_hashes

texts = st.text(max_size=12)


def test_known_answer() -> None:
    assert content_hash("  Caf\u00e9 \n au  lait ") == hashlib.sha256("Caf\u00e9 au lait".encode()).hexdigest()
    assert content_hash("a", "b c") == hashlib.sha256(b"a\nb c").hexdigest()


def test_same_text_same_hash() -> None:
    assert content_hash("Caf\u00e9") == content_hash(unicodedata.normalize("NFD", "Caf\u00e9"))
    assert content_hash("a", " \n") == content_hash("a") == content_hash("a", None)
    assert content_hash("a b") != content_hash("a", "b")
    assert content_hash("A") != content_hash("a")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.none() | texts, st.none() | texts), max_size=8))
def test_vectorised_agrees_with_one_by_one(rows: list[tuple[str | None, str | None]]) -> None:
    titles, bodies = pa.array([t for t, _ in rows], pa.string()), pa.array([b for _, b in rows], pa.large_string())
    expected = [None if t is None else content_hash(t, b) for t, b in rows]
    assert content_hashes(titles, bodies).to_pylist() == expected
    chunks = pa.chunked_array([titles.slice(0, len(rows) // 2), titles.slice(len(rows) // 2)])
    assert content_hashes(chunks).to_pylist() == [None if t is None else content_hash(t) for t, _ in rows]
