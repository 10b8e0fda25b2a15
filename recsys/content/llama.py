"""Embeddings from the hidden states of a Llama-architecture language model.

A causal model's last token has read the whole text, the mean of all tokens averages over partial readings; with a
prompt that asks what the text is about, the last token is the better one (Jiang et al. 2023, Scaling Sentence
Embeddings with Large Language Models). See docs/decisions/0004-content-embeddings.md for the choices made here.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys.config import EncoderConfig
from recsys.content.transformer import TransformerEncoder, layer_number
from recsys.content.weights import check_architecture, find_weights
from recsys.errors import InputError
from recsys.stage import sha256_file

if TYPE_CHECKING:
    import torch

ADAPTER = "adapter_model.safetensors"


class LlamaEncoder(TransformerEncoder):
    """Hidden states of layer ``config.layer``, pooled over the ad's own tokens (``mean``) or the ``last`` token.

    With several layers or poolings the blocks stand side by side, all from one reading.

    Layer i is ``hidden_states[i]`` of transformers: 0 the embeddings, the last one after the final norm. Layers beyond
    it are neither loaded nor computed. The states of a layer before the last are divided by their root mean square,
    for that is how the next layer reads them, and it bounds them by sqrt(dim), within float16.

    The mean leaves out special and prompt tokens. At layers before the last it also leaves out position 0: there the
    model parks its attention in one huge activation that has nothing to do with the text (Sun et al. 2024, Massive
    Activations in Large Language Models; at SmolLM2's layer 28 its norm is 40 times that of other tokens).
    """

    def __init__(self, config: EncoderConfig, device: str = "auto") -> None:
        weights = find_weights(config.model or "smollm2-135m", config.revision)
        values = check_architecture(weights, ("llama",), "Llama")
        super().__init__(config, device, weights)
        self._depth = int(values["num_hidden_layers"])
        self._layers = [layer_number(layer, self._depth) for layer in config.layers]
        self.dim = int(values["hidden_size"]) * len(self._layers) * len(config.poolings)
        prompt = "" if config.prompt is None else f", prompt {config.prompt!r}"
        layer = f"{' '.join(config.poolings)}, layer {' '.join(map(str, self._layers))}/{self._depth}"
        self.pooling = f"{layer}{prompt}, {config.max_tokens} tokens, {self.dtype}"
        self._kept: dict[int, torch.Tensor] = {}  # states of the layers before the last, between hook and pooling
        self.adapter = None if config.adapter is None else adapter_folder(config.adapter)
        if self.adapter is not None:
            self.revision += f" + adapter {sha256_file(self.adapter / ADAPTER)[:16]}"
        if self.dtype == "bfloat16":
            self.pooling += " with float32 residuals"

    def _load(self) -> Any:
        import torch

        deepest = max(self._layers)
        model = self._from_pretrained(num_hidden_layers=deepest)
        if self.adapter is not None:
            model = merged(model, self.adapter)
        if deepest < self._depth:
            model.norm = torch.nn.Identity()
        if self.dtype == "bfloat16":
            _float32_residuals(model)
        for layer in self._layers:
            if layer < self._depth:
                module = model.layers[layer - 1] if layer else model.embed_tokens
                module.register_forward_hook(self._keeper(layer))
        return model

    def _keeper(self, layer: int) -> Any:
        def keep(module: Any, args: Any, out: Any) -> None:
            self._kept[layer] = out

        return keep

    def _hidden(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[int, torch.Tensor]:
        import torch

        # Padding stands on the right, where a causal model's real tokens never look: without a mask the result is
        # the same, and the fast causal attention kernels apply.
        last = self._model(input_ids=ids, use_cache=False).last_hidden_state
        # Without learned weights (Zhang & Sennrich 2019).
        states = {k: torch.nn.functional.rms_norm(v.float(), v.shape[-1:], eps=1e-6) for k, v in self._kept.items()}
        self._kept.clear()
        return states | ({self._depth: last} if self._depth in self._layers else {})

    def _span(self, span: torch.Tensor, mask: torch.Tensor, layer: int) -> torch.Tensor:
        if layer < self._depth and span.shape[1] > 1:
            span = span.clone()
            span[:, 0] = False
        return super()._span(span, mask, layer)


def require_peft() -> None:
    """Raise InputError where the package that reads and writes adapters is not there."""
    if find_spec("peft") is None:
        raise InputError("peft is not installed", file="experiment", column="encoders.*.adapter or adapt",
                         expected="pip install 'recsys-ads[adapt]'")


def adapter_folder(name: str) -> Path:
    """A folder with a LoRA adapter; pickled ones are refused, for they are code.

    Raises:
        InputError: it is not one.
    """
    require_peft()
    folder = Path(name).expanduser()
    for file in (ADAPTER, "adapter_config.json"):
        if not (folder / file).is_file():
            raise InputError("not a folder of a LoRA adapter", file=folder / file, got="no such file",
                             expected=f"adapter_config.json and {ADAPTER}")
    return folder


def merged(model: Any, folder: Path) -> Any:
    """The model with an adapter's updates added to its weights, so that encoding costs what it did before."""
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(folder), use_safetensors=True).merge_and_unload()
    except Exception as error:  # peft has no error of its own for a bad config, shapes of another model, a torn file
        first = str(error).strip().splitlines()
        raise InputError("the adapter does not fit the model", file=folder, expected="a LoRA adapter of this model",
                         got=f"{type(error).__name__}: {first[0] if first else ''}") from None


def _float32_residuals(model: Any) -> None:
    """Keep the residual stream in float32 and everything that multiplies matrices in bfloat16.

    Sixty sums rounded to 8 bits cost some texts more than 0.001 of cosine; sums are a small part of the time, and norms
    are computed in float32 anyway. A bfloat16 branch added to a float32 stream gives float32 by promotion.
    """
    def narrow(module: Any, args: Any, out: Any) -> Any:
        return tuple(o.bfloat16() for o in out) if isinstance(out, tuple) else out.bfloat16()

    model.embed_tokens.register_forward_hook(lambda module, args, out: out.float())
    model.rotary_emb.register_forward_hook(narrow)
    for layer in model.layers:
        layer.input_layernorm.register_forward_hook(narrow)
        layer.post_attention_layernorm.register_forward_hook(narrow)
    model.norm.float()
