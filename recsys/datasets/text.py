"""The identity of an ad's text: one hash, used as key of the content store and as the unit of story-disjoint splits.

Two texts are the same when they are equal after Unicode normalisation (NFC) and after every run of
white space has become one space; case and punctuation count. The hash is the SHA-256 of
``title`` or, where there is a body, ``title + newline + body`` (a newline cannot occur in a
normalised part, so the pair is unambiguous). An empty body is no body.
"""

from __future__ import annotations

import hashlib
import unicodedata

import pyarrow as pa
import pyarrow.compute as pc


def normalize_text(text: str) -> str:
    """NFC form with every run of white space made one space, none at the ends (Unicode Standard Annex 15)."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def content_hash(title: str, body: str | None = None) -> str:
    """Identity of an ad's text.

    Args:
        title: headline or title.
        body: running text shown with it; None and blank mean none.

    Returns:
        64 hexadecimal digits (SHA-256 of the normalised UTF-8 text).

    Example:
        >>> content_hash("Two  words") == content_hash(" Two words\\n", "")
        True
    """
    text = normalize_text(title)
    if body is not None and (rest := normalize_text(body)):
        text += "\n" + rest
    return hashlib.sha256(text.encode()).hexdigest()


def content_hashes(titles: pa.Array | pa.ChunkedArray, bodies: pa.Array | pa.ChunkedArray | None = None) -> pa.Array:
    """:func:`content_hash` of every row; each distinct text is hashed once.

    Args:
        titles: strings, length N; a null title has a null hash.
        bodies: strings, length N, or None.

    Returns:
        String array of length N.
    """
    title = _encode(titles)
    if bodies is None:
        hashes = pa.array([None if t is None else content_hash(t) for t in title.dictionary.to_pylist()], pa.string())
        return hashes.take(title.indices)
    body = _encode(bodies)
    # One integer per distinct pair; a null (no body) is the code after the last.
    width = len(body.dictionary) + 1
    pair = pc.add(pc.multiply(title.indices.cast(pa.int64()), width),
                  pc.fill_null(body.indices.cast(pa.int64()), width - 1))
    pairs = pair.dictionary_encode()
    texts, rest = title.dictionary.to_pylist(), [*body.dictionary.to_pylist(), None]
    hashes = pa.array([content_hash(texts[p // width], rest[p % width]) for p in pairs.dictionary.to_pylist()],
                      pa.string())
    return hashes.take(pairs.indices)


def _encode(column: pa.Array | pa.ChunkedArray) -> pa.DictionaryArray:
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(whole, pa.ChunkedArray):  # no chunks at all
        whole = pa.concat_arrays(whole.chunks) if whole.num_chunks else pa.array([], column.type)
    return whole.cast(pa.string()).dictionary_encode()
