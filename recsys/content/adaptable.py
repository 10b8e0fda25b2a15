"""A Llama-architecture encoder whose last layers can be trained: low-rank updates over a reading made once.

LoRA (Hu et al. 2022, Low-Rank Adaptation of Large Language Models) leaves a weight W as it is and adds B A of a small
rank. Layers below the adapted ones never change, so every text is read through them once and what they said is kept;
an epoch costs the upper layers only.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys.config import AdaptConfig, EncoderConfig
from recsys.content.llama import LlamaEncoder, require_peft
from recsys.content.transformer import padded_batches, pick_dtype
from recsys.errors import InputError

if TYPE_CHECKING:
    import torch

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class AdaptableLlama(LlamaEncoder):
    """The encoder that ``config`` describes, to be trained.

    Weights are float32; matrix products are bfloat16 where the device has units for it. Only layers above ``start`` are
    pooled here, for the others do not change.
    """

    def __init__(self, config: EncoderConfig, adapt: AdaptConfig, device: str = "auto") -> None:
        require_peft()
        super().__init__(config.model_copy(update={"dtype": "float32", "adapt": None}), device)
        self._adapt, self._deepest = adapt, max(self._layers)
        self.start = self._deepest - adapt.layers
        if self.start < 0:
            raise InputError("more layers to adapt than are computed", column="adapt.layers", got=adapt.layers,
                             expected=f"at most {self._deepest}")
        self._products = pick_dtype("auto", self.device)
        self.dim = int(self._weights.config()["hidden_size"]) * len(self.upper) * len(config.poolings)
        self._rows: list[torch.Tensor] = []  # states of layer ``start``, [tokens, hidden] of each text
        self._spans: list[np.ndarray] = []
        self.tokens = np.zeros(0, np.int64)  # of each text that was read
        self.learned = 0  # tokens that gradients went through

    @property
    def upper(self) -> list[int]:
        """Pooled layers that the adaptation changes."""
        return [layer for layer in self._layers if layer > self.start]

    def _load(self) -> Any:
        import torch
        from peft import LoraConfig, get_peft_model

        model = self._from_pretrained(num_hidden_layers=self._deepest)
        if self._deepest < self._depth:
            model.norm = torch.nn.Identity()
        # The layers of "layers.N" are those of the whole model, so what is saved fits it.
        self._peft = get_peft_model(model, LoraConfig(
            r=self._adapt.rank, lora_alpha=self._adapt.alpha, target_modules=TARGETS,
            layers_to_transform=list(range(self.start, self._deepest)), layers_pattern="layers"))
        return model

    def trainable(self) -> list[torch.nn.Parameter]:
        """The updates' matrices A and B."""
        self._ensure_loaded()
        return [p for p in self._model.parameters() if p.requires_grad]

    def upper_parameters(self) -> int:
        """Weights that a token is multiplied with above ``start``, updates included."""
        self._ensure_loaded()
        return sum(p.numel() for layer in self._model.layers[self.start :] for p in layer.parameters())

    def save(self, folder: Path) -> None:
        """Write adapter_config.json and adapter_model.safetensors, as peft reads them."""
        self._peft.save_pretrained(str(folder), safe_serialization=True)
        (folder / "README.md").unlink(missing_ok=True)  # a model card with blanks to fill in

    def _narrow(self) -> AbstractContextManager[None]:
        import torch

        return torch.autocast(self.device, torch.bfloat16, enabled=self._products == "bfloat16")

    def _through(self, hidden: torch.Tensor, first: int, last: int) -> dict[int, torch.Tensor]:
        """Layer -> states [rows, width, hidden] after layers ``first`` + 1 .. ``last``, from those of ``first``."""
        import torch

        at = torch.arange(hidden.shape[1], device=hidden.device)[None]
        rotary, states = self._model.rotary_emb(hidden, position_ids=at), {}
        for number in range(first, last):
            hidden = self._model.layers[number](hidden, attention_mask=None, position_ids=at,
                                                position_embeddings=rotary)
            states[number + 1] = hidden
        return states

    def read(self, texts: list[str]) -> None:
        """Read texts through the layers that stay as they are; :meth:`pooled` speaks of them by their number here."""
        import torch

        self._ensure_loaded()
        ids, self._spans = self._tokenize(texts)
        self.tokens = np.array([len(row) for row in ids], np.int64)
        rows: list[torch.Tensor | None] = [None] * len(texts)
        with torch.no_grad(), self._narrow():
            for batch in padded_batches([len(i) for i in ids], self.config.batch_tokens or 2048):
                padded = np.zeros((len(batch), len(ids[batch[0]])), np.int64)
                for at, row in enumerate(batch):
                    padded[at, : len(ids[row])] = ids[row]
                hidden = self._model.embed_tokens(torch.from_numpy(padded).to(self.device))
                hidden = self._through(hidden, 0, self.start).get(self.start, hidden)
                for at, row in enumerate(batch):
                    rows[row] = hidden[at, : len(ids[row])].to(torch.float32, copy=True)
        self._rows = [row for row in rows if row is not None]

    def pooled(self, at: np.ndarray) -> torch.Tensor:
        """float32 [n, dim] of the texts with these numbers; gradients reach the updates."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        hidden = pad_sequence([self._rows[i] for i in at], batch_first=True)
        mask = torch.arange(hidden.shape[1])[None] < torch.from_numpy(self.tokens[at])[:, None]
        spans = np.zeros((len(self.config.poolings), *mask.shape), bool)
        for row, i in enumerate(at):
            spans[:, row, : self.tokens[i]] = self._spans[i]
        self.learned += int(self.tokens[at].sum()) if torch.is_grad_enabled() else 0
        mask, marks = mask.to(self.device), torch.from_numpy(spans).to(self.device)
        with self._narrow():
            states = self._through(hidden, self.start, self._deepest)
        blocks = []
        for layer in self.upper:
            state = states[layer].float()
            normed = (self._model.norm(state) if layer == self._depth
                      else torch.nn.functional.rms_norm(state, state.shape[-1:], eps=1e-6))
            blocks += [self._pool(normed, self._span(span, mask, layer), pooling)
                       for span, pooling in zip(marks, self.config.poolings, strict=True)]
        return torch.cat(blocks, dim=1)
