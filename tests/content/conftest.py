"""Tiny random-weight models with real tokenizers, so that tests need no published weights."""

from __future__ import annotations

from pathlib import Path

import pytest

CORPUS = ["the quick brown fox jumps over the lazy dog", "you won't believe what happened next!", "10 ways to save $5"]


def _tokenizer(kind: str):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    raw.train_from_iterator(CORPUS, trainer)
    if kind == "bert":
        ends = [("<s>", 1), ("</s>", 2)]
        raw.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def make_llama(folder: Path, seed: int = 0) -> Path:
    """A 3-layer LlamaForCausalLM of width 32, saved as a model folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
                         initializer_range=0.3, num_attention_heads=4, num_key_value_heads=2,
                         max_position_embeddings=16384)
    LlamaForCausalLM(config).save_pretrained(folder)
    _tokenizer("llama").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    return make_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    config = BertConfig(vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
                        initializer_range=0.3, num_attention_heads=4, max_position_embeddings=128)
    BertModel(config).save_pretrained(folder)
    _tokenizer("bert").save_pretrained(folder)
    return folder
