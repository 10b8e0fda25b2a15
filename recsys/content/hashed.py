"""Encoders without a network: hashed word n-grams, and surface statistics of the text.

Both are stateless: a vector depends on its own text only, so there is nothing to fit and nothing that could leak.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from recsys.config import EncoderConfig
from recsys.content.encoders import EncodedBatch
from recsys.errors import InputError

# Words, and every mark, sign or emoji on its own: "?" and "!" tell headlines apart.
_TOKEN = re.compile(r"\w+|[^\w\s]")


class HashedEncoder:
    """Word n-grams, and character n-grams where asked for, hashed into ``dim`` buckets with a random sign each.

    Counts are sublinear, vectors have unit length.

    Weinberger et al. 2009, Feature Hashing for Large Scale Multitask Learning: the sign makes collisions cancel
    in expectation, so inner products stay unbiased. Sublinear count: sign(c) * (1 + ln |c|), from
    Manning et al. 2008, Introduction to Information Retrieval, section 6.4.1. The hash is 32-bit MurmurHash3.
    """

    model_id = "hashed-ngrams"
    revision = "1"
    device = "cpu"
    dtype = "float32"
    parameters = 0

    def __init__(self, config: EncoderConfig) -> None:
        from sklearn.feature_extraction.text import HashingVectorizer

        self.dim = config.dim
        low, high = config.ngrams
        self.pooling = f"words {low}-{high}, {config.dim} buckets, sublinear, l2"
        common = {"lowercase": True, "alternate_sign": True, "norm": None, "dtype": np.float32}
        words = {"ngram_range": (low, high), "token_pattern": _TOKEN.pattern}
        if config.characters is None:
            self._vectorizers = [HashingVectorizer(n_features=config.dim, **words, **common)]
            return
        if config.dim % 2:
            raise InputError("the buckets are shared by words and characters", column="dim", got=config.dim,
                             expected="an even number")
        first, last = config.characters
        self.pooling += f", half of them characters {first}-{last}"
        inside = {"ngram_range": (first, last), "analyzer": "char_wb"}
        self._vectorizers = [HashingVectorizer(n_features=config.dim // 2, **kind, **common)
                             for kind in (words, inside)]

    def encode(self, texts: list[str]) -> EncodedBatch:
        """float32 [n, dim] of unit length (zero for a text without words); tokens are words and marks."""
        tokens = np.array([len(_TOKEN.findall(t)) for t in texts], np.int32)
        if not texts:
            return EncodedBatch(np.zeros((0, self.dim), np.float32), tokens)
        blocks = [_unit_rows(v.transform(texts)) for v in self._vectorizers]
        return EncodedBatch(np.concatenate(blocks, axis=1) / np.float32(np.sqrt(len(blocks))), tokens)


def _unit_rows(counts: Any) -> np.ndarray:
    """Sparse n-gram counts [n, d] to sublinear float32 [n, d] rows of unit length (zero where nothing was counted)."""
    counts.eliminate_zeros()  # n-grams of opposite sign that fell into one bucket
    counts.data = np.sign(counts.data) * (1 + np.log(np.abs(counts.data)))
    rows = np.asarray(counts.toarray(), np.float32)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), np.float32)


STATISTICS = (
    "log_characters", "log_words", "mean_word_length", "digits_share", "numbers", "starts_with_number", "questions",
    "exclamations", "quotes", "ellipses", "commas", "colons", "sentences", "capitals_share", "shouted_words",
    "title_case_share",
)


class LengthEncoder:
    """Surface statistics of the text (:data:`STATISTICS`): the floor that a reading of the words has to beat."""

    model_id = "surface-statistics"
    revision = "1"
    pooling = "none"
    device = "cpu"
    dtype = "float32"
    parameters = 0
    dim = len(STATISTICS)

    def encode(self, texts: list[str]) -> EncodedBatch:
        """float32 [n, 16]; tokens are white-space separated words."""
        rows = [_statistics(t) for t in texts]
        vectors = np.array(rows, np.float32).reshape(len(texts), self.dim)
        return EncodedBatch(vectors, np.array([len(t.split()) for t in texts], np.int32))


def _statistics(text: str) -> list[float]:
    words, letters = text.split(), sum(c.isalpha() for c in text)
    numbers = re.findall(r"\d+(?:[.,]\d+)*", text)
    per_word, per_letter = 1 / max(len(words), 1), 1 / max(letters, 1)
    counts = (
        sum(c.isdigit() for c in text) / max(len(text), 1), len(numbers), bool(re.match(r"\W*\d", text)),
        text.count("?"), text.count("!"), sum(text.count(c) for c in "\"“”«»‘"),
        len(re.findall(r"\.{2,}|…", text)), text.count(","), text.count(":"),
        len(re.findall(r"[.!?…]+(?=\s|$)", text)), sum(c.isupper() for c in text) * per_letter,
        sum(len(w) > 1 and w.isupper() for w in words), sum(w[0].isupper() for w in words) * per_word,
    )
    lengths = (np.log1p(len(text)), np.log1p(len(words)), letters * per_word)
    # Counts are capped: float16 in the store, and a headline's twentieth question mark says no more than the first.
    return [float(v) for v in lengths] + [min(float(v), 20.0) for v in counts]
