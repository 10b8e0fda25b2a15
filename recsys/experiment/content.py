"""The content that an arm's ranker, or a retriever, reads: embedded, joined, and made into semantic ids."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from recsys.config import ContentConfig, EncoderConfig, ExperimentConfig
from recsys.contracts import read_parquet
from recsys.errors import InputError


def embed_arm(config: ExperimentConfig, arm: ContentConfig, out: Path) -> None:
    """Embed the split's ads with each of the arm's encoders into ``out/content/NAME``."""
    if not arm.encoders:
        return
    from recsys.content import embed_texts

    ads = out / "split" / "ads.parquet"
    if not ads.is_file():
        raise InputError("the data set has no texts to embed", file=ads, column=f"arms.*.content = {arm.content}",
                         expected="a recipe with an ads table, or arms without content")
    for name in arm.encoders:
        embed_texts(read_parquet(ads), _adapted(config, name, out), out / "content" / name)


def _adapted(config: ExperimentConfig, name: str, out: Path) -> EncoderConfig:
    """The encoder, adapted first to the split's training part where it says so, into ``out/adapters/NAME``."""
    encoder = config.encoders[name]
    if encoder.adapt is None:
        return encoder
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("an encoder is adapted by one process", file="experiment", column=f"encoders.{name}.adapt",
                         got="torchrun", expected="recsys experiment or train in one process, or adapter: FOLDER")
    from recsys.training.adapt import adapt_encoder

    adapt_encoder(encoder, out / "split", out / "adapters" / name, seed=config.seed)
    return encoder.model_copy(update={"adapt": None, "adapter": str(out / "adapters" / name)})


def content_of_arm(arm: ContentConfig, out: Path) -> Any:
    """Ids and content vectors of the split's ads by the arm's encoders, None for ids only."""
    if not arm.encoders:
        return None
    from recsys.content import joined_for_ads

    ads = read_parquet(out / "split" / "ads.parquet")
    return joined_for_ads([out / "content" / n for n in arm.encoders], ads)


def semantic_ids_of_arm(arm: ContentConfig, name: str, out: Path) -> None:
    """Give the split's ads semantic ids into ``out/semantic_ids/NAME``, where the arm has them."""
    if arm.semantic_ids is None:
        return
    from recsys.content import make_semantic_ids
    from recsys.training.data import training_ad_ids

    make_semantic_ids([out / "content" / n for n in arm.encoders], read_parquet(out / "split" / "ads.parquet"),
                      training_ad_ids(out / "split"), arm.semantic_ids, out / "semantic_ids" / name)


def semantic_of_arm(arm: ContentConfig, name: str, out: Path) -> Any:
    """What made the arm's semantic ids, and those of the split's ads; None where it has none."""
    if arm.semantic_ids is None:
        return None
    from recsys.content import SemanticIds

    ids = SemanticIds.load(out / "semantic_ids" / name)
    return ids.quantiser, ids.for_ads(read_parquet(out / "split" / "ads.parquet"))
