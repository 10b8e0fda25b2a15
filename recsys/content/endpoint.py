"""Embeddings from any server that speaks OpenAI's ``POST /v1/embeddings``: a hosted API, vLLM, TEI, llama.cpp, ...

    encoders:
      small: {kind: endpoint, url: "https://api.openai.com/v1", model: text-embedding-3-small, dim: 1536,
              key_env: OPENAI_API_KEY, price: api-openai-3-small}

What can pass is tried again with growing pauses (429, 408, 5xx, time-outs, broken connections, half an answer), as long
as ``Retry-After`` asks; what cannot (a wrong key, model or shape) is one clear error. The content store saves finished
chunks, so that a run that gave up or was killed pays for no text twice.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import math
import os
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from recsys.config import EncoderConfig
from recsys.content.encoders import EncodedBatch
from recsys.errors import InputError, RecsysError
from recsys.log import log

CHARACTERS_PER_TOKEN = 4  # of English text; the server's tokenizer is not here to count
LONGEST_PAUSE = 120.0  # seconds; a server that asks for more is not waited for
_MOST_BYTES = 1 << 30
_PASSING = {408, 425, 429, 500, 502, 503, 504, 529}


class _Passing(Exception):
    """What may be over at the next try; ``pause`` is what the server asked for, in seconds, or None."""

    def __init__(self, message: str, pause: float | None = None) -> None:
        super().__init__(message)
        self.pause = pause


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None  # the key goes to the host that it was meant for, and to no other


class EndpointEncoder:
    """Vectors of a remote model.

    A store knows them by the model's name and ``revision``, not by the host: raise ``revision`` when the server's
    weights change. Texts are cut to ``4 * max_tokens`` characters, and a blank text is sent as one space, because
    servers refuse the empty string. Token counts are the server's own, shared out over a request's texts by length.
    """

    device = "remote"
    dtype = "float32"
    parameters = 0

    def __init__(self, config: EncoderConfig) -> None:
        for name, expected in (("url", "a base URL ending in /v1"), ("model", "the model's name on the server")):
            if not getattr(config, name):
                raise InputError("an endpoint needs it", column=name, expected=expected)
        parsed = urllib.parse.urlsplit(str(config.url))
        if parsed.scheme not in ("http", "https") or not parsed.hostname or parsed.query or parsed.username:
            raise InputError("not an endpoint", column="url", got=config.url, expected="http(s)://HOST[:PORT]/v1")
        if config.prompt is not None and "{text}" not in config.prompt:
            raise InputError("the prompt has no place for the text", column="prompt", got=config.prompt,
                             expected="a template with {text}")
        self.config = config
        self.model_id, self.revision, self.dim = str(config.model), config.revision or "unversioned", config.dim
        prompt = "" if config.prompt is None else f", prompt {config.prompt!r}"
        self.pooling = f"remote{prompt}, {CHARACTERS_PER_TOKEN * config.max_tokens} characters"
        base = str(config.url).rstrip("/")
        self._url = base if base.endswith("/embeddings") else f"{base}/embeddings"
        self._open = urllib.request.build_opener(_NoRedirect).open
        self._resume_at, self._lock = 0.0, threading.Lock()

    def encode(self, texts: list[str]) -> EncodedBatch:
        """float32 [n, dim] and token counts, in the order of the texts; a few requests run at a time.

        Raises:
            InputError: the server refuses the key, model or texts, or its answer has another shape.
            RecsysError: it still failed after the last retry.
        """
        limit, prompt = CHARACTERS_PER_TOKEN * self.config.max_tokens, self.config.prompt or "{text}"
        sent = [prompt.replace("{text}", t[:limit] if t.strip() else " ") for t in texts]
        step = self.config.batch_size
        batches = [sent[at : at + step] for at in range(0, len(sent), step)]
        stop = threading.Event()
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            parts = list(pool.map(lambda batch: self._unless(stop, batch), batches))
        if not parts:
            return EncodedBatch(np.zeros((0, self.dim), np.float32), np.zeros(0, np.int32))
        return EncodedBatch(np.concatenate([p.vectors for p in parts]), np.concatenate([p.tokens for p in parts]))

    def _unless(self, stop: threading.Event, texts: list[str]) -> EncodedBatch:
        # After a failure, requests that have not begun are not paid for.
        if stop.is_set():
            raise RecsysError(f"{self._url}: not asked, because an earlier request failed")
        try:
            return self._request(texts)
        except BaseException:
            stop.set()
            raise

    def _request(self, texts: list[str]) -> EncodedBatch:
        """One request, tried until it is answered or the tries are used up."""
        for attempt in range(self.config.retries + 1):
            self._wait()
            try:
                return self._read(self._post(texts), texts)
            except _Passing as failure:
                pause = failure.pause
                if attempt == self.config.retries or (pause or 0) > LONGEST_PAUSE:
                    raise RecsysError(f"{self._url}: gave up after {attempt + 1} tries: {failure}; what was embedded "
                                      "before is kept, run again to go on") from None
                if pause is None:  # full jitter: clients that failed together do not come back together
                    pause = random.uniform(0.5, 1.0) * min(self.config.backoff_seconds * 2**attempt, LONGEST_PAUSE)
                    time.sleep(pause)
                else:  # the server speaks for all requests, not for this one alone
                    with self._lock:
                        self._resume_at = max(self._resume_at, time.monotonic() + pause)
                log.info("embed: %s: %s; trying again after %.1f s", self._url, failure, pause)
        raise AssertionError("unreachable")

    def _wait(self) -> None:
        while (left := self._resume_at - time.monotonic()) > 0:
            time.sleep(left)

    def _post(self, texts: list[str]) -> bytes:
        body = {"model": self.model_id, "input": texts, "encoding_format": "float"}
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "recsys"}
        if self.config.key_env is not None:
            headers["Authorization"] = f"Bearer {self._key()}"
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        try:
            with self._open(request, timeout=self.config.timeout_seconds) as answer:
                return bytes(answer.read(_MOST_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                told = _error_words(error.read(4096))
            if error.code in _PASSING:
                raise _Passing(f"HTTP {error.code} {told}", _retry_after(error.headers.get("Retry-After"))) from None
            raise InputError("the server refused the request", file=self._url, got=f"HTTP {error.code} {told}",
                             expected=_MEND.get(error.code, "a request that it takes")) from None
        except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
            raise _Passing(f"{type(error).__name__}: {getattr(error, 'reason', error)}") from None

    def _key(self) -> str:
        key = os.environ.get(str(self.config.key_env), "").strip()
        if not key:
            raise InputError("the endpoint's key is not set", column="key_env", got=self.config.key_env,
                             expected="an environment variable that holds the key")
        return key

    def _read(self, raw: bytes, texts: list[str]) -> EncodedBatch:
        try:
            answer = json.loads(raw)
        except ValueError:
            raise _Passing(f"an answer that is not JSON: {raw[:60]!r}") from None
        rows = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(rows, list) or len(rows) != len(texts):
            got = _error_words(raw[:4096]) if not isinstance(rows, list) else f"{len(rows)} vectors"
            raise self._shape("data", got, f"a list of {len(texts)} embeddings")
        vectors, seen = np.zeros((len(texts), self.dim), np.float32), set()
        for at, row in enumerate(rows):
            index, vector = (row.get("index", at), row.get("embedding")) if isinstance(row, dict) else (at, None)
            if not isinstance(index, int) or not 0 <= index < len(texts) or index in seen:
                raise self._shape(f"data[{at}].index", index, f"each of 0 .. {len(texts) - 1} once")
            seen.add(index)
            if not isinstance(vector, list) or len(vector) != self.dim:
                got = f"{len(vector)} numbers" if isinstance(vector, list) else type(vector).__name__
                raise self._shape(f"data[{at}].embedding", got, f"a list of {self.dim} numbers (the encoder's dim)")
            try:
                vectors[index] = vector
            except (TypeError, ValueError):
                raise self._shape(f"data[{at}].embedding", vector[:3], "numbers") from None
            if not np.isfinite(vectors[index]).all():
                raise self._shape(f"data[{at}].embedding", "a number that is not finite", "finite numbers")
        return EncodedBatch(vectors, share_out(self._tokens(answer), texts))

    def _tokens(self, answer: dict[str, Any]) -> int:
        usage = answer.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        told = usage.get("prompt_tokens", usage.get("total_tokens"))
        if isinstance(told, int) and told >= 0:
            return told
        if self.config.price is not None:
            raise self._shape("usage.prompt_tokens", told, "a count, because tokens are what is paid for")
        return 0

    def _shape(self, column: str, got: object, expected: str) -> InputError:
        return InputError("the server's answer has another shape", file=self._url, column=column, got=got,
                          expected=expected)


_MEND = {401: "a valid key in key_env", 403: "a key with access to the model", 404: "a URL ending in /v1 and a model "
         "that the server has", 413: "a smaller batch_size", 422: "a smaller batch_size or max_tokens"}


def share_out(total: int, texts: Sequence[str]) -> np.ndarray:
    """A request's tokens over its texts by their bytes, as int32 [n] that add up to ``total`` exactly."""
    edges = np.cumsum([0] + [len(t.encode()) + 1 for t in texts])
    return np.diff(np.floor(edges * (total / max(int(edges[-1]), 1)) + 1e-9)).astype(np.int32)


def _retry_after(value: str | None) -> float | None:
    """Seconds, or a date (RFC 9110, section 10.2.3); None where there is neither."""
    if not value:
        return None
    try:
        seconds = float(value)
        return max(seconds, 0.0) if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError):
        return None


def _error_words(raw: bytes) -> str:
    """The message of an OpenAI-style error, or the start of whatever was sent."""
    try:
        error = json.loads(raw)["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:200]
    except (ValueError, KeyError, TypeError):
        return " ".join(raw.decode(errors="replace").split())[:80]
