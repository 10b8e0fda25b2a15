"""Adapting an open Llama-architecture encoder to the training part's clicks: one stage, one adapter folder.

    adapt_encoder(EncoderConfig(kind="llama", adapt=AdaptConfig()), split, "adapters/mine")
    EncoderConfig(kind="llama", adapter="adapters/mine")       # one more encoder

Headline tests: a linear score of the pooled states is fitted to the differences of click rates inside a test. User-ad
logs: ads that a user clicked one after the other are brought together (in-batch softmax: van den Oord et al. 2018,
Representation Learning with Contrastive Predictive Coding, equation 4), each ad less by the log of how often it is
drawn (Yi et al. 2019, Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from recsys.config import AdaptConfig, EncoderConfig
from recsys.content.adaptable import AdaptableLlama
from recsys.content.device import device_name
from recsys.content.store import ad_text
from recsys.contracts import IMPRESSIONS, read_parquet
from recsys.errors import InputError
from recsys.log import log
from recsys.models.ridge import Tests, fit_ridge, targets
from recsys.stage import Stage, run_stage, write_json
from recsys.training.ridge import training_rows


class Task(Protocol):
    """What is learned: batches of training rows, their loss, and the loss on rows held out."""

    parameters: list[Tensor]

    def batches(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """One epoch's batches, as numbers of rows."""

    def loss(self, rows: np.ndarray) -> Tensor:
        """Scalar loss of a batch, with gradients."""

    def held_out(self) -> float:
        """Loss on what training never sees."""


def adapt_encoder(config: EncoderConfig, split_dir: Path, out: Path, *, seed: int = 0,
                  device: str = "auto") -> dict[str, Any]:
    """Train ``config.adapt`` on ``split_dir/train.parquet`` into ``out``.

    Args:
        config: the encoder to be adapted.
        split_dir: train.parquet and ads.parquet; no other file is read.
        out: adapter_config.json and adapter_model.safetensors, as peft reads them, and usage.json (stage
            "finetune": seconds of reading and training, tokens and flops of the upper layers).
        seed: of the validation rows, the order of batches and the updates' first values.
        device: ``auto`` | ``cpu`` | ``cuda``.

    Returns:
        The manifest; ``facts`` has ``held_out``, the validation loss before the first and after each epoch, and
        ``epoch``, the one that was kept (0: nothing helped, and the adapter changes nothing).

    Raises:
        InputError: settings that do not fit the model, or nothing to learn from.
    """
    adapt = config.adapt
    if adapt is None:
        raise InputError("nothing says how to adapt", file="experiment", column="encoders.*.adapt", got=None,
                         expected="adapt: {...}")
    model = AdaptableLlama(config, adapt, device)

    def build(stage: Stage) -> None:
        torch.manual_seed(seed)
        train = read_parquet(split_dir / "train.parquet", IMPRESSIONS)
        ads = read_parquet(split_dir / "ads.parquet")
        ads = ads.filter(pc.is_in(ads["ad_id"], value_set=pc.unique(train["ad_id"])))
        started = time.perf_counter()
        bodies = ads["body"].to_pylist() if "body" in ads.column_names else [None] * ads.num_rows
        model.read([ad_text(t, b) for t, b in zip(ads["title"].to_pylist(), bodies, strict=True)])
        make = HeadlineTests if "trials" in train.column_names else CoClicks
        task = make(model, adapt, train, ads["ad_id"].to_pylist(), seed)
        history, kept = _fit(model, task, adapt, seed)
        model.save(stage.folder)
        seconds, weights, tokens = time.perf_counter() - started, model.upper_parameters(), model.learned
        # Forward, and twice that backward (Kaplan et al. 2020, section 2.1).
        write_json(stage.path("usage.json"), {
            "stage": "finetune", "model_id": model.model_id, "model_revision": model.revision, "seconds": seconds,
            "device": model.device, "device_name": device_name(model.device), "tokens": tokens,
            "parameters": weights, "flops": 6 * weights * tokens})
        stage.rows = {"texts": ads.num_rows}
        stage.facts = {"held_out": history, "epoch": kept, "start_layer": model.start,
                       "trained": sum(p.numel() for p in model.trainable())}

    settings = {"encoder": config.model_dump(mode="json"), "revision": model.revision, "seed": seed}
    return run_stage("finetune", out, config=settings, build=build,
                     inputs={name: split_dir / f"{name}.parquet" for name in ("train", "ads")})


def _fit(model: AdaptableLlama, task: Task, adapt: AdaptConfig, seed: int) -> tuple[list[float], int]:
    """Train; the weights of the best epoch are left in the model. Returns losses and that epoch."""
    lora = model.trainable()
    optimizer = torch.optim.AdamW([*lora, *task.parameters], lr=adapt.learning_rate, weight_decay=0.0)
    rng = np.random.default_rng(seed)
    history, best = [task.held_out()], [p.detach().clone() for p in lora]
    for epoch in range(1, adapt.epochs + 1):
        for rows in task.batches(rng):
            optimizer.zero_grad()
            task.loss(rows).backward()
            torch.nn.utils.clip_grad_norm_(lora, 1.0)
            optimizer.step()
        history.append(task.held_out())
        log.info("adapt: epoch %d of %d, held-out loss %.5f (before: %.5f)", epoch, adapt.epochs, history[-1],
                 history[0])
        if history[-1] == min(history):
            best = [p.detach().clone() for p in lora]
    with torch.no_grad():
        for parameter, value in zip(lora, best, strict=True):
            parameter.copy_(value)
    return history, int(np.argmin(history))


def _held(units: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Rows of a random share of the units (stories, users), bool [n]; at least one unit on either side."""
    count = int(units.max()) + 1
    if count < 2:
        raise InputError("too few stories or users to hold some out", file="train", got=count, expected="at least 2")
    chosen = np.random.default_rng(seed).permutation(count)[: min(max(1, round(share * count)), count - 1)]
    return np.isin(units, chosen)


def _all_pooled(model: AdaptableLlama, texts: np.ndarray) -> Tensor:
    with torch.no_grad():
        return torch.cat([model.pooled(texts[at : at + 128]) for at in range(0, len(texts), 128)])


def pairwise_loss(score: Tensor, target: Tensor, weight: Tensor, test: Tensor) -> Tensor:
    """Squared error of the differences between all pairs of a test's candidates, weighted by impressions.

    With W the sum of a test's weights, the sum over its pairs of w_i w_j / W ((t_i - t_j) - (s_i - s_j))^2 is the sum
    over its candidates of w_i times the squared error once score and target are centred in the test, which is how it
    is computed; divided by the sum of all weights.

    Args:
        score, target, weight: float [n].
        test: int64 [n], codes 0 .. T-1.
    """
    def centred(values: Tensor) -> Tensor:
        count = int(test.max()) + 1
        total = weight.new_zeros(count).index_add(0, test, weight)
        mean = weight.new_zeros(count).index_add(0, test, weight * values) / total.clamp_min(1e-12)
        return values - mean[test]

    return (weight * (centred(target) - centred(score)) ** 2).sum() / weight.sum().clamp_min(1e-12)


class HeadlineTests:
    """Rows are candidates of randomised tests. The head begins as the ridge on the states as they are."""

    def __init__(self, model: AdaptableLlama, adapt: AdaptConfig, train: pa.Table, ad_ids: list[str],
                 seed: int) -> None:
        numbers, tests, story, _ = training_rows(train, ad_ids, np.arange(len(ad_ids)))
        self.model, self.adapt, self.text, self.test = model, adapt, numbers, tests.test
        held = _held(story, adapt.validation_share, seed)
        weight, target = targets(tests)
        self.weight, self.target = (torch.from_numpy(v).float().to(model.device) for v in (weight, target))
        self.fit, self.held = np.flatnonzero(~held), np.flatnonzero(held)
        known = Tests(np.unique(tests.test[self.fit], return_inverse=True)[1], tests.trials[self.fit],
                      tests.successes[self.fit])
        start = _all_pooled(model, self.text[self.fit]).cpu().numpy()
        widths = (model.dim // (parts := len(model.upper) * len(model.config.poolings)),) * parts
        ridge = fit_ridge(start, known, story[self.fit], (10.0, 30.0, 100.0, 300.0, 1e3), seed, widths=widths)
        self.mean, self.scale = (torch.from_numpy(v).float().to(model.device)
                                 for v in (ridge.features.mean, ridge.features.scale))
        self.parts = parts
        self.head = torch.from_numpy(ridge.weights).float().to(model.device).requires_grad_()
        self.parameters = [self.head]

    def batches(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Whole tests, in random order, until a batch is full."""
        tests = self.test[self.fit]
        order = np.argsort(rng.permutation(int(self.test.max()) + 1)[tests], kind="stable")
        rows, edges = self.fit[order], np.flatnonzero(np.diff(tests[order])) + 1
        batch: list[np.ndarray] = []
        for group in np.split(rows, edges):
            batch.append(group)
            if sum(map(len, batch)) >= self.adapt.batch_size:
                yield np.concatenate(batch)
                batch = []
        if batch:
            yield np.concatenate(batch)

    def _loss(self, rows: np.ndarray, pooled: Tensor) -> Tensor:
        blocks = ((pooled - self.mean) / self.scale).reshape(len(rows), self.parts, -1)
        unit = (torch.nn.functional.normalize(blocks, dim=2) / self.parts**0.5).flatten(1)
        at = torch.from_numpy(rows).to(self.weight.device)
        test = torch.from_numpy(np.unique(self.test[rows], return_inverse=True)[1]).to(self.weight.device)
        return pairwise_loss(unit @ self.head, self.target[at], self.weight[at], test)

    def loss(self, rows: np.ndarray) -> Tensor:
        """:func:`pairwise_loss` of a batch."""
        return self._loss(rows, self.model.pooled(self.text[rows]))

    def held_out(self) -> float:
        """:func:`pairwise_loss` of the held-out stories."""
        return float(self._loss(self.held, _all_pooled(self.model, self.text[self.held])).detach())


class CoClicks:
    """Rows are pairs of different ads that one user clicked one after the other."""

    def __init__(self, model: AdaptableLlama, adapt: AdaptConfig, train: pa.Table, ad_ids: list[str],
                 seed: int) -> None:
        for column in ("user_id", "ts", "click"):
            if column not in train.column_names:
                raise InputError("missing column", file="train", column=column, got=sorted(train.column_names),
                                 expected="clicks of users in time")
        table = train.filter(pc.equal(train["click"], 1)).sort_by([("user_id", "ascending"), ("ts", "ascending")])
        user = np.unique(table["user_id"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True)[1]
        ad = pc.index_in(table["ad_id"], value_set=pa.array(ad_ids)).to_numpy()
        follow = (user[1:] == user[:-1]) & (ad[1:] != ad[:-1])
        self.pairs, users = np.stack([ad[:-1], ad[1:]], axis=1)[follow], user[:-1][follow]
        if len(self.pairs) < 4:
            raise InputError("no user clicked two ads", file="train", got=f"{len(self.pairs)} pairs",
                             expected="clicks to learn from")
        held = _held(np.unique(users, return_inverse=True)[1], adapt.validation_share, seed)
        rng = np.random.default_rng(seed)
        self.fit = np.flatnonzero(~held)
        # Some batches: the loss over the batch's ads depends on how many there are.
        self.held = rng.permutation(np.flatnonzero(held))[: 16 * adapt.batch_size]
        self.model, self.adapt = model, adapt
        drawn = np.bincount(self.pairs[self.fit].ravel(), minlength=len(ad_ids)) + 1.0
        self.log_drawn = torch.from_numpy(np.log(drawn / drawn.sum())).float().to(model.device)
        self.mean = _all_pooled(model, np.arange(len(ad_ids))).mean(dim=0)
        self.parameters: list[Tensor] = []

    def batches(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Random pairs, at most ``adapt.pairs`` of them."""
        rows, size = rng.permutation(self.fit)[: self.adapt.pairs], self.adapt.batch_size
        for at in range(0, len(rows), size):
            if len(rows[at : at + size]) > 1:
                yield rows[at : at + size]

    def loss(self, rows: np.ndarray) -> Tensor:
        """Cross-entropy of which ad followed and which went before, over the batch's ads."""
        texts, at = np.unique(self.pairs[rows], return_inverse=True)
        unit = torch.nn.functional.normalize(self.model.pooled(texts) - self.mean, dim=1)
        one, two = torch.from_numpy(at.reshape(-1, 2)).to(unit.device).T
        scores = unit @ unit.T / self.adapt.temperature - self.log_drawn[torch.from_numpy(texts).to(unit.device)]
        scores = scores.masked_fill(torch.eye(len(texts), dtype=torch.bool, device=unit.device), -torch.inf)
        entropy = torch.nn.functional.cross_entropy
        return (entropy(scores[one], two) + entropy(scores[two], one)) / 2

    def held_out(self) -> float:
        """The loss over pairs of held-out users, in batches of the same size."""
        size = self.adapt.batch_size
        with torch.no_grad():
            parts = [(float(self.loss(rows)), len(rows)) for at in range(0, len(self.held), size)
                     if len(rows := self.held[at : at + size]) > 1]
        return sum(v * n for v, n in parts) / max(sum(n for _, n in parts), 1)
