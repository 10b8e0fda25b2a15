"""Embeddings from a BERT-type sentence encoder: mean over all tokens, unit length (Reimers & Gurevych 2019, SBERT)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recsys.config import EncoderConfig
from recsys.content.transformer import TransformerEncoder, layer_number
from recsys.content.weights import check_architecture, find_weights
from recsys.errors import InputError

if TYPE_CHECKING:
    import torch

# Those whose positions are absolute and whose layers are counted by num_hidden_layers.
MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "camembert", "mpnet", "electra")


class SentenceEncoder(TransformerEncoder):
    """Mean over the tokens of layer ``config.layer``, scaled to unit length as such models are trained to be used."""

    def __init__(self, config: EncoderConfig, device: str = "auto") -> None:
        if config.poolings != ("mean",):
            raise InputError("a sentence encoder is pooled by the mean over its text", column="pooling",
                             got=config.pooling, expected="mean")
        weights = find_weights(config.model or "minilm", config.revision)
        values = check_architecture(weights, MODEL_TYPES)
        super().__init__(config, device, weights)
        self._layers = [layer_number(layer, int(values["num_hidden_layers"])) for layer in config.layers]
        self.dim = int(values["hidden_size"]) * len(self._layers)
        # RoBERTa's kin count positions from pad + 1.
        reserved = 0 if values["model_type"] in ("bert", "electra") else int(values.get("pad_token_id") or 0) + 1
        self._limits = {"truncation": True, "max_length": int(values["max_position_embeddings"]) - reserved}
        prompt = "" if config.prompt is None else f", prompt {config.prompt!r}"
        layers = " ".join(map(str, self._layers))
        self.pooling = f"mean l2, layer {layers}{prompt}, {config.max_tokens} tokens, {self.dtype}"

    def _load(self) -> Any:
        return self._from_pretrained(num_hidden_layers=max(self._layers), add_pooling_layer=False)

    def _hidden(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[int, torch.Tensor]:
        states = self._model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        return {layer: states[layer] for layer in self._layers}

    def _span(self, span: torch.Tensor, mask: torch.Tensor, layer: int) -> torch.Tensor:
        return mask

    def _pool(self, hidden: torch.Tensor, span: torch.Tensor, pooling: str) -> torch.Tensor:
        import torch

        return torch.nn.functional.normalize(super()._pool(hidden, span, pooling), dim=1)
