from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.config import EncoderConfig
from recsys.content import ad_text, embed_texts, for_ads, joined_for_ads, load_vectors, make_encoder, read_usage
from recsys.content import store as store_module
from recsys.content.ranks import Ranks
from recsys.contracts import CONTENT, read_parquet
from recsys.errors import InputError, RecsysError
from tests.processes import live_glob, wait_until

HASHED = EncoderConfig(kind="hashed", dim=64)


def ads(n: int, start: int = 0, copies: int = 1) -> pa.Table:
    """Ads with distinct texts of many lengths; each text is used by ``copies`` ads."""
    rows = [i for i in range(start, start + n) for _ in range(copies)]
    titles = [f"headline {i} " + "dog " * (i * 7 % 23) for i in rows]
    bodies = [None if i % 3 else f"body of {i}" for i in rows]
    hashes = [hashlib.sha256(f"{t}\n{b}".encode()).hexdigest() for t, b in zip(titles, bodies, strict=True)]
    return pa.table({"ad_id": [f"ad{at}" for at in range(len(rows))], "title": titles,
                     "body": pa.array(bodies, pa.string()), "content_hash": hashes})


def leftovers(out: Path) -> list[str]:
    return sorted(p.name for p in out.parent.iterdir() if p != out)


class Counting:
    """An encoder that remembers what it was asked to encode and can be told to fail."""

    def __init__(self, fail_after: int | None = None, kind: type[BaseException] = KeyboardInterrupt) -> None:
        self.inner, self.seen, self.fail_after, self.kind = make_encoder(HASHED), [], fail_after, kind

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def encode(self, texts):
        if self.fail_after is not None and len(self.seen) >= self.fail_after:
            raise self.kind("stop")
        self.seen += texts
        return self.inner.encode(texts)


@pytest.fixture
def counting(monkeypatch):
    def install(**settings) -> Counting:
        encoder = Counting(**settings)
        monkeypatch.setattr(store_module, "make_encoder", lambda config, device: encoder)
        return encoder

    return install


@pytest.mark.parametrize(("title", "body", "text"), [
    ("A title", None, "A title"), ("A title", "", "A title"), ("A title", " \n", "A title"),
    (" A title ", "the body", "A title. the body"), ("", "the body", "the body"), ("", None, ""),
])
def test_ad_text(title, body, text):
    assert ad_text(title, body) == text


def test_embed_writes_the_contract_once_per_text(tmp_path, tiny_llama):
    config = EncoderConfig(kind="llama", model=str(tiny_llama), dtype="float32", layer=2)
    table = ads(40, copies=3)
    manifest = embed_texts(table, config, tmp_path / "store", device="cpu", chunk=16)
    got = read_parquet(tmp_path / "store" / "content.parquet", CONTENT)
    assert got.num_rows == 40
    assert got.schema.field("vector").type == pa.list_(pa.field("element", pa.float16()), 32)
    assert got["content_hash"].to_pylist() == table["content_hash"].to_pylist()[::3]
    encoder = make_encoder(config, "cpu")
    titles, bodies = table["title"].to_pylist()[::3], table["body"].to_pylist()[::3]
    want = encoder.encode([ad_text(t, b) for t, b in zip(titles, bodies, strict=True)])
    assert np.allclose(load_vectors(tmp_path / "store").matrix, want.vectors, rtol=1e-3, atol=1e-3)
    assert got["tokens"].to_pylist() == want.tokens.tolist()
    usage = read_usage(tmp_path / "store")
    assert usage["texts"] == 40
    assert usage["tokens"] == want.tokens.sum()
    assert usage["parameters"] == encoder.parameters
    assert usage["flops"] == 2 * encoder.parameters * usage["tokens"]
    assert 0 < usage["utilisation"] < 1
    assert usage["seconds"] > 0
    assert usage["cached_texts"] == 0
    assert {"stage", "model_id", "model_revision", "pooling", "device", "device_name"} <= usage.keys()
    assert manifest["rows"] == {"content": 40}
    assert leftovers(tmp_path / "store") == []


def test_second_run_embeds_nothing_and_says_so(tmp_path, counting, caplog):
    encoder = counting()
    embed_texts(ads(30), HASHED, tmp_path / "store")
    assert len(encoder.seen) == 30
    before = (tmp_path / "store" / "content.parquet").stat().st_mtime_ns
    caplog.set_level("INFO", logger="recsys")
    for table in (ads(30), ads(10, start=5)):
        assert embed_texts(table, HASHED, tmp_path / "store")["cached"] is True
    assert len(encoder.seen) == 30
    assert "nothing to do" in caplog.text
    assert (tmp_path / "store" / "content.parquet").stat().st_mtime_ns == before


def test_ads_added_later_are_all_that_is_embedded(tmp_path, counting):
    encoder = counting()
    embed_texts(ads(30), HASHED, tmp_path / "store", chunk=7)
    first = read_usage(tmp_path / "store")
    embed_texts(ads(20, start=20), HASHED, tmp_path / "store", chunk=7)
    assert len(encoder.seen) == 40
    both = read_usage(tmp_path / "store")
    assert (both["texts"], both["cached_texts"]) == (40, 30)
    assert both["tokens"] > first["tokens"]
    assert both["seconds"] > first["seconds"]
    embed_texts(ads(40), HASHED, tmp_path / "whole", chunk=40)
    a, b = load_vectors(tmp_path / "store"), load_vectors(tmp_path / "whole")
    assert a.hashes == b.hashes
    assert np.array_equal(a.matrix, b.matrix)
    assert both["tokens"] == read_usage(tmp_path / "whole")["tokens"]


def test_two_runs_that_add_to_one_store_lose_nothing_of_each_other(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "recsys")
    out, begun, go = tmp_path / "store", Event(), Event()
    encode = store_module._encode_missing

    def slow(*arguments) -> None:
        begun.set()
        assert go.wait(300)
        encode(*arguments)

    monkeypatch.setattr(store_module, "_encode_missing", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(embed_texts, ads(4), HASHED, out)
        assert begun.wait(300)
        second = pool.submit(embed_texts, ads(4, start=4), HASHED, out)
        wait_until(lambda: "another process works in" in caplog.text or second.done(), "the second to meet the first")
        go.set()
        first.result()
        assert second.result()["facts"]["cached"] == 4
    held = read_parquet(out / "content.parquet", CONTENT)["content_hash"].to_pylist()
    assert sorted(held) == sorted(ads(8)["content_hash"].to_pylist())
    assert leftovers(out) == []


def test_utilisation_adds_up_over_runs(tmp_path, tiny_llama):
    config = EncoderConfig(kind="llama", model=str(tiny_llama))
    embed_texts(ads(10), config, tmp_path / "store", device="cpu")
    first = read_usage(tmp_path / "store")
    embed_texts(ads(20), config, tmp_path / "store", device="cpu")
    both = read_usage(tmp_path / "store")
    # One process, one measured ceiling: utilisation times seconds is proportional to the work.
    assert np.isclose(both["flops"] / both["seconds"] / both["utilisation"],
                      first["flops"] / first["seconds"] / first["utilisation"])


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError, RecsysError])
def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, counting, failure):
    first = counting(fail_after=24, kind=failure)
    with pytest.raises(failure):
        embed_texts(ads(40), HASHED, tmp_path / "store", chunk=8)
    assert not (tmp_path / "store").exists()
    second = counting()
    # More ads were added meanwhile: the finished chunks still count.
    embed_texts(ads(45), HASHED, tmp_path / "store", chunk=8)
    assert len(first.seen) == 24
    assert len(second.seen) == 21
    embed_texts(ads(45), HASHED, tmp_path / "whole", chunk=8)
    a, b = load_vectors(tmp_path / "store"), load_vectors(tmp_path / "whole")
    assert a.hashes == b.hashes
    assert np.array_equal(a.matrix, b.matrix)
    assert read_usage(tmp_path / "store")["tokens"] == read_usage(tmp_path / "whole")["tokens"]
    assert leftovers(tmp_path / "store") == ["whole"]


def test_chunks_of_a_run_killed_just_before_clearing_up_are_not_counted_twice(tmp_path, counting, monkeypatch):
    counting()
    with monkeypatch.context() as patch:
        patch.setattr("recsys.content.parts.Parts.clear", lambda self: None)
        embed_texts(ads(20), HASHED, tmp_path / "store", chunk=8)
    assert len(leftovers(tmp_path / "store")) == 1
    embed_texts(ads(25), HASHED, tmp_path / "store", chunk=8)
    assert read_usage(tmp_path / "store")["texts"] == 25
    assert len(load_vectors(tmp_path / "store").hashes) == 25
    assert leftovers(tmp_path / "store") == []


def test_another_encoder_replaces_the_store(tmp_path):
    embed_texts(ads(10), HASHED, tmp_path / "store")
    embed_texts(ads(12), EncoderConfig(kind="length"), tmp_path / "store")
    vectors = load_vectors(tmp_path / "store")
    assert vectors.matrix.shape == (12, 16)
    assert vectors.identity["model_id"] == "surface-statistics"
    usage = read_usage(tmp_path / "store")
    assert (usage["texts"], usage["cached_texts"], usage["utilisation"], usage["flops"]) == (12, 0, None, 0)


def test_other_peoples_folders_are_left_alone(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.json").write_text('{"stage": "prepare", "key": "x"}')
    for name, word in (("notes", "not a content store"), ("data", "prepare")):
        with pytest.raises(InputError, match=word):
            embed_texts(ads(3), HASHED, tmp_path / name)
    assert (tmp_path / "notes" / "thesis.txt").read_text() == "years of work"
    assert leftovers(tmp_path / "notes") == ["data"]


@pytest.mark.parametrize(("change", "words"), [
    (lambda t: t.drop_columns("title"), ["column title", "missing"]),
    (lambda t: t.drop_columns("content_hash"), ["column content_hash", "missing"]),
    (lambda t: t.set_column(1, "title", pa.array(["a", None, "b"])), ["column title", "row 1", "null"]),
    (lambda t: t.slice(0, 0), ["no rows"]),
])
def test_bad_ads_are_refused_and_leave_nothing(tmp_path, change, words):
    with pytest.raises(InputError) as error:
        embed_texts(change(ads(3)), HASHED, tmp_path / "store")
    assert all(w in str(error.value) for w in words)
    assert list(tmp_path.iterdir()) == []


def test_ads_without_bodies_have_their_titles_embedded(tmp_path):
    table = ads(5)
    embed_texts(table.drop_columns("body"), HASHED, tmp_path / "store")
    want = make_encoder(HASHED).encode([ad_text(t) for t in table["title"].to_pylist()]).vectors
    assert np.allclose(load_vectors(tmp_path / "store").matrix, want, atol=1e-3)


def test_large_values_are_clipped_and_not_finite_ones_refused():
    from recsys.content.encoders import EncodedBatch
    from recsys.content.parts import content_table

    identity = {"model_id": "m", "model_revision": "r", "pooling": "p"}
    vectors = np.array([[1e6, -1e6, 0.5]], np.float32)
    table = content_table(["h"], EncodedBatch(vectors, np.ones(1, np.int32)), identity)
    assert table["vector"].to_pylist() == [[65504.0, -65504.0, 0.5]]
    vectors[0, 0] = np.nan
    with pytest.raises(RecsysError, match="not finite"):
        content_table(["h"], EncodedBatch(vectors, np.ones(1, np.int32)), identity)


def test_damaged_stores_are_refused(tmp_path):
    embed_texts(ads(10), HASHED, tmp_path / "store")
    file = tmp_path / "store" / "content.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="truncated"):
        load_vectors(tmp_path / "store")
    file.write_bytes(whole)
    table = pq.read_table(file)
    wide = table.set_column(table.column_names.index("vector"), "vector",
                            pa.array([[1.0]] * 10, pa.list_(pa.float32())))
    pq.write_table(wide, file)
    with pytest.raises(InputError, match=r"column vector.*fixed_size_list<float16>"):
        load_vectors(tmp_path / "store")
    with pytest.raises(InputError, match="no such file"):
        load_vectors(tmp_path / "nowhere")


def test_hashes_are_the_ones_that_datasets_make(tmp_path):
    text = pytest.importorskip("recsys.datasets.text")
    table = ads(4)
    keys = text.content_hashes(table["title"], table["body"])
    embed_texts(table.set_column(3, "content_hash", keys), HASHED, tmp_path / "store")
    assert load_vectors(tmp_path / "store").hashes == keys.to_pylist()


RUN = """
import sys
from pathlib import Path
from recsys.config import EncoderConfig
from recsys.content import embed_texts
from tests.content.test_store import ads
config = EncoderConfig(kind="llama", model=sys.argv[1], max_tokens=256)
embed_texts(ads(3000), config, Path(sys.argv[2]), device="cpu", chunk=40)
"""


@pytest.mark.slow
def test_kill_minus_nine_loses_and_doubles_nothing(tmp_path, tiny_llama):
    command = [sys.executable, "-c", RUN, str(tiny_llama), str(tmp_path / "store")]
    kills = 0
    while kills < 4:
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
        before = len(live_glob(tmp_path, ".store.*.parts/*.parquet"))
        while process.poll() is None and len(live_glob(tmp_path, ".store.*.parts/*.parquet")) < before + 10:
            time.sleep(0.003)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills >= 3
    assert not (tmp_path / "store").exists()
    assert subprocess.run(command, check=False).returncode == 0
    config = EncoderConfig(kind="llama", model=str(tiny_llama), max_tokens=256)
    embed_texts(ads(3000), config, tmp_path / "whole", device="cpu", chunk=40)
    a, b = load_vectors(tmp_path / "store"), load_vectors(tmp_path / "whole")
    assert a.hashes == b.hashes
    assert np.array_equal(a.matrix, b.matrix)
    for key in ("texts", "tokens", "flops"):
        assert read_usage(tmp_path / "store")[key] == read_usage(tmp_path / "whole")[key]
    assert leftovers(tmp_path / "store") == ["whole"]


def test_joined_vectors_weigh_each_encoder_alike_whatever_its_scale(tmp_path):
    table = ads(30)
    for dim in (64, 128):
        embed_texts(table, EncoderConfig(kind="hashed", dim=dim), tmp_path / str(dim))
    ids, joined = joined_for_ads([tmp_path / "64", tmp_path / "128"], table)
    assert ids == table["ad_id"].to_pylist()
    assert joined.shape == (30, 192)
    for block in (joined[:, :64], joined[:, 64:]):
        assert np.isclose(block.var(axis=0).sum(), 1.0, rtol=1e-4)
    _, alone = joined_for_ads([tmp_path / "64"], table)
    assert np.array_equal(alone, for_ads(load_vectors(tmp_path / "64"), table)[1])


RANK = """
import sys
from pathlib import Path
from recsys.config import EncoderConfig
from recsys.content import embed_texts
from tests.content.test_store import ads
embed_texts(ads(500), EncoderConfig(kind="hashed", dim=64), Path(sys.argv[1]), chunk=40)
"""


def test_ranks_embed_their_shares_into_one_store(tmp_path):
    command = [sys.executable, "-c", RANK, str(tmp_path / "store")]
    world = {**os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ranks = [subprocess.Popen(command, env={**world, "RANK": str(rank)}) for rank in (1, 0)]
    assert [r.wait(timeout=120) for r in ranks] == [0, 0]  # either alone would wait for the other's half for ever
    embed_texts(ads(500), EncoderConfig(kind="hashed", dim=64), tmp_path / "alone")
    a, b = load_vectors(tmp_path / "store"), load_vectors(tmp_path / "alone")
    assert a.hashes == b.hashes
    assert np.array_equal(a.matrix, b.matrix)
    assert read_usage(tmp_path / "store")["tokens"] == read_usage(tmp_path / "alone")["tokens"]
    assert leftovers(tmp_path / "store") == ["alone"]


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_shares_are_disjoint_and_cover(world):
    items = list(range(100))
    shares = [Ranks(rank, world).share(items) for rank in range(world)]
    assert sorted(i for share in shares for i in share) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("given", [{"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x"}, {"LOCAL_WORLD_SIZE": "3"}])
def test_ranks_that_contradict_each_other_are_refused(monkeypatch, given):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert Ranks.of_environment() == Ranks()
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="torchrun"):
        Ranks.of_environment()


def test_usage_tells_padding_and_rate(tmp_path, tiny_llama):
    config = EncoderConfig(kind="llama", model=str(tiny_llama), dtype="float32", batch_tokens=64)
    embed_texts(ads(50), config, tmp_path / "store", device="cpu")
    usage = read_usage(tmp_path / "store")
    assert usage["positions"] >= usage["tokens"] > 0
    assert usage["padding_share"] == pytest.approx(1 - usage["tokens"] / usage["positions"])
    assert usage["tokens_per_second"] == pytest.approx(usage["tokens"] / usage["seconds"])
    short, long = pa.table({"title": ["a", "b" * 40], "content_hash": ["0", "1"]}), config.model_copy(
        update={"batch_tokens": 4096})
    embed_texts(short, long, tmp_path / "padded", device="cpu")
    assert read_usage(tmp_path / "padded")["padding_share"] > 0.3  # one batch of very different lengths
