"""What the two network encoders share: device and number format, tokenising ahead, batches of equal length."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys.config import EncoderConfig
from recsys.content.encoders import EncodedBatch
from recsys.content.weights import Weights
from recsys.errors import InputError

if TYPE_CHECKING:
    import torch

TOKENISED_AHEAD = 2048  # texts whose tokens a thread prepares while the device computes those before them


def pick_device(device: str) -> str:
    """``auto`` -> the GPU where there is one; an explicit ``cuda`` without a GPU is an error."""
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise InputError("unknown device", column="device", got=device, expected="auto | cpu | cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("no GPU that this PyTorch can use", column="device", got=device, expected="auto or cpu")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if device == "cuda" and "LOCAL_RANK" in os.environ:  # torchrun: each rank its own GPU
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    return device


def pick_dtype(dtype: str, device: str) -> str:
    """``auto`` -> bfloat16 where the device has units for it (elsewhere it is emulated and slower), else float32."""
    import torch

    if dtype != "auto":
        return dtype
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    has = torch.cpu.get_capabilities()
    return "bfloat16" if any(has.get(unit, False) for unit in ("avx512_bf16", "amx_bf16")) else "float32"


def layer_number(layer: int, layers: int) -> int:
    """Hidden layer counted as Python counts, 0 being the embeddings -> number of layers to compute.

    Raises:
        InputError: the model has no such layer.
    """
    if not -layers - 1 <= layer <= layers:
        raise InputError("the model has no such layer", column="layer", got=layer,
                         expected=f"{-layers - 1} .. {layers} for a model of {layers} layers")
    return layer % (layers + 1)


def padded_batches(lengths: list[int], budget: int) -> Iterator[list[int]]:
    """Group positions by length, longest first, so that each batch's rows * longest row stays within ``budget``.

    Longest first: where memory is short, it is the first batch that fails. A single row may exceed the budget.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        rows = max(1, budget // max(1, lengths[order[start]]))
        yield order[start : start + rows]
        start += rows


class TransformerEncoder:
    """Base of the network encoders: everything but how hidden states are computed.

    Subclasses set ``pooling``, ``dim`` and ``_layers`` and give :meth:`_load` and :meth:`_hidden`. A vector is the
    blocks of all layers and poolings side by side, layer by layer.
    """

    model_id: str
    revision: str
    pooling: str
    dim: int

    def __init__(self, config: EncoderConfig, device: str, weights: Weights) -> None:
        if config.prompt is not None and "{text}" not in config.prompt:
            raise InputError("the prompt has no place for the text", column="prompt", got=config.prompt,
                             expected="a template with {text}")
        self.config, self._weights = config, weights
        self.model_id, self.revision = weights.model_id, weights.revision
        self.device = pick_device(device)
        self.dtype = pick_dtype(config.dtype, self.device)
        self._limits: dict[str, Any] = {}  # truncation, where the model has a fixed number of positions
        self._layers: list[int] = []  # numbers of the layers that are pooled
        self._model: Any = None
        self._tokenizer: Any = None

    @property
    def folder(self) -> Path:
        """The model folder that is read."""
        return self._weights.folder

    @property
    def parameters(self) -> int:
        """Parameters of the layers computed, embedding tables left out."""
        self._ensure_loaded()
        return sum(p.numel() for name, p in self._model.named_parameters() if "embed" not in name)

    def encode(self, texts: list[str]) -> EncodedBatch:
        """float32 [n, dim] and token counts, in the order of the texts."""
        import torch

        self._ensure_loaded()
        # Results stay on the device until the end, so that a GPU is not made to wait after every batch.
        vectors = torch.zeros(len(texts), self.dim, device=self.device)
        lengths: list[int] = []
        positions = 0
        with torch.inference_mode(), ThreadPoolExecutor(1) as ahead:
            blocks = [texts[at : at + TOKENISED_AHEAD] for at in range(0, len(texts), TOKENISED_AHEAD)]
            coming = [ahead.submit(self._tokenize, blocks[0])] if blocks else []
            for block in range(len(blocks)):
                ids, spans = coming.pop().result()
                if block + 1 < len(blocks):  # the device need not wait for the next block's tokens
                    coming.append(ahead.submit(self._tokenize, blocks[block + 1]))
                positions += self._encode_block(ids, spans, vectors[len(lengths) : len(lengths) + len(ids)])
                lengths += map(len, ids)
        return EncodedBatch(vectors.cpu().numpy(), np.array(lengths, np.int32), positions)

    def _encode_block(self, ids: list[list[int]], spans: list[np.ndarray], out: torch.Tensor) -> int:
        """Write the vectors of tokenised texts into ``out`` [n, dim]; returns the positions computed."""
        import torch

        positions, budget = 0, self.config.batch_tokens or (512 if self.device == "cpu" else 16_384)
        for rows in padded_batches([len(i) for i in ids], budget):
            width = len(ids[rows[0]])
            positions += len(rows) * width
            batch = np.zeros((2, len(rows), width), np.int64)  # pad id 0: masked or causally unseen everywhere
            pooled = np.zeros((len(self.config.poolings), len(rows), width), bool)
            for at, row in enumerate(rows):
                batch[0, at, : len(ids[row])] = ids[row]
                batch[1, at, : len(ids[row])] = 1
                pooled[:, at, : len(ids[row])] = spans[row]
            tensors = torch.from_numpy(batch).to(self.device, non_blocking=True)
            marks = torch.from_numpy(pooled).to(self.device)
            states = self._hidden(tensors[0], tensors[1])
            blocks = [self._pool(states[layer], self._span(span, tensors[1].bool(), layer), pooling).float()
                      for layer in self._layers for span, pooling in zip(marks, self.config.poolings, strict=True)]
            out[torch.tensor(rows, device=self.device)] = torch.cat(blocks, dim=1)
        return positions

    def _hidden(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[int, torch.Tensor]:
        """Layer -> hidden states [rows, width, hidden] of each requested layer, from ids and mask [rows, width]."""
        raise NotImplementedError

    def _load(self) -> Any:
        """The model, cut to the layers that are needed, in eval mode."""
        raise NotImplementedError

    def _span(self, span: torch.Tensor, mask: torch.Tensor, layer: int) -> torch.Tensor:
        """Which positions are pooled over at a layer; a text without tokens of its own is pooled over all of its row.

        Args:
            span: bool [rows, width], the text's own tokens, special and prompt tokens left out; all for ``last``.
            mask: bool [rows, width], false where there is padding.
            layer: its number.
        """
        return span | (mask & ~span.any(dim=1, keepdim=True))

    def _pool(self, hidden: torch.Tensor, span: torch.Tensor, pooling: str) -> torch.Tensor:
        """One vector a row: the mean over the marked positions (float32 sum), or the last marked one.

        Args:
            hidden: [rows, width, hidden].
            span: bool [rows, width]; every row has a marked position.
            pooling: how.
        """
        import torch

        if pooling == "last":
            width = span.shape[1]
            at = (torch.arange(width, device=span.device) * span).amax(dim=1)
            return hidden[torch.arange(len(hidden), device=hidden.device), at]
        weight = span.unsqueeze(-1).float()
        return (hidden.float() * weight).sum(1) / weight.sum(1)

    def _ensure_loaded(self) -> None:
        if self._model is not None:
            return
        from transformers import AutoTokenizer
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        except Exception as error:  # missing or malformed tokenizer files surface as half a dozen types
            raise InputError("the model folder's tokenizer cannot be read", file=self.folder,
                             got=f"{type(error).__name__}: {error}", expected="a tokenizer.json") from None
        if not self._tokenizer.is_fast:
            raise InputError("the tokenizer cannot say where its tokens stand in the text", file=self.folder,
                             expected="a tokenizer.json")
        try:
            self._model = self._load()
        except InputError:
            raise
        except Exception as error:  # truncated or foreign safetensors: OSError, SafetensorError, RuntimeError, ...
            raise InputError("the model's weights cannot be read", file=self.folder,
                             got=f"{type(error).__name__}: {error}", expected="complete *.safetensors files") from None

    def _from_pretrained(self, **options: Any) -> Any:
        import torch
        from transformers import AutoModel

        model, info = AutoModel.from_pretrained(
            self.folder, dtype=getattr(torch, self.dtype), use_safetensors=True, local_files_only=True,
            output_loading_info=True, **options)
        missing = sorted(info["missing_keys"])
        if missing:
            raise InputError("weights are missing from the model's files", file=self.folder, column=missing[0],
                             got=f"{len(missing)} missing tensors", expected="complete *.safetensors files")
        return model.to(self.device).eval()

    def _tokenize(self, texts: list[str]) -> tuple[list[list[int]], list[np.ndarray]]:
        """Token ids, and for each pooling the positions to pool over, bool [poolings, tokens], of each text."""
        if not texts:
            return [], []
        prompt, cut = self.config.prompt or "{text}", self._cut(texts)
        # A prompt that says the text twice is pooled over the second reading, the only one in which a causal model has
        # seen all of it (Springer et al. 2024, Repetition Improves Language Model Embeddings), or over all of them.
        everywhere = [m.start() for m in re.finditer(r"\{text\}", prompt)]
        places = {"mean": everywhere[-1:], "mean_all": everywhere, "last": []}
        coded = self._tokenizer([prompt.replace("{text}", t) for t in cut], return_offsets_mapping=True,
                                return_attention_mask=False, verbose=False, **self._limits)
        ids, spans = [], []
        for text, row, offsets in zip(cut, coded["input_ids"], coded["offset_mapping"], strict=True):
            if not row:  # an empty text in a vocabulary without special tokens: let the model see one end mark
                row, offsets = [self._end_token()], [(0, 0)]
            span = np.zeros((len(self.config.poolings), len(row)), bool)
            for at, pooling in enumerate(self.config.poolings):
                starts = [len(prompt[:place].replace("{text}", text)) for place in places[pooling]]
                span[at] = [any(a < start + len(text) and b > start for start in starts) for a, b in offsets]
            ids.append(row)
            spans.append(span)
        return ids, spans

    def _end_token(self) -> int:
        for token in (self._tokenizer.eos_token_id, self._tokenizer.pad_token_id):
            if token is not None:
                return int(token)
        return 0

    def _cut(self, texts: list[str]) -> list[str]:
        """Texts shortened to ``max_tokens`` tokens of their own; the prompt comes on top and is never cut."""
        limit = self.config.max_tokens
        # A token covers at least a byte, so a text of at most so many bytes cannot be too long.
        long = [i for i, t in enumerate(texts) if len(t.encode()) > limit]
        if not long:
            return texts
        coded = self._tokenizer([texts[i] for i in long], add_special_tokens=False, return_offsets_mapping=True,
                                return_attention_mask=False, verbose=False)
        cut = list(texts)
        for i, offsets in zip(long, coded["offset_mapping"], strict=True):
            if len(offsets) > limit:
                cut[i] = texts[i][: offsets[limit - 1][1]]
        return cut
