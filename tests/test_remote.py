from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from recsys.cli import main
from recsys.errors import InputError
from recsys.remote import INDEX, Remote, addresses_at_hand, at_hand
from recsys.storage import filesystem
from tests.stores import STORES


def _files(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def _write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_what_one_machine_finished_another_has_at_hand(tmp_path: Path) -> None:
    there = tmp_path / "bucket" / "run"
    with at_hand(str(there), tmp_path / "a") as a:
        _write(a, data__x="1", data__manifest="2")
        _write(a / ".data.partial", half="3")
    with at_hand(str(there), tmp_path / "b") as b:
        assert _files(b) == {"data/manifest": "2", "data/x": "1"}
        _write(b, data__x="other", report="4")
        (b / "data/manifest").unlink()
    with at_hand(str(there), tmp_path / "a") as a:
        assert _files(a)["data/x"] == "other"
        assert _files(a)["report"] == "4"
    assert not list(there.rglob("*half*"))


def test_what_was_done_is_kept_where_the_work_ends_badly(tmp_path: Path) -> None:
    there = tmp_path / "bucket"

    def work() -> None:
        with at_hand(str(there), tmp_path / "a") as a:
            _write(a, done="1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    assert json.loads((there / INDEX).read_text())["files"].keys() == {"done"}


def test_half_a_copy_is_named_and_the_index_comes_last(tmp_path: Path) -> None:
    there = tmp_path / "bucket"
    with at_hand(str(there), tmp_path / "a") as a:
        _write(a, x="1", y="2")
    _write(there, x="9")  # another run has begun to write, and was killed before its index
    with pytest.raises(InputError, match=r"bucket/x: not what its index says"), at_hand(str(there), tmp_path / "b"):
        pass
    assert not (tmp_path / "b" / "x").exists()
    remote = Remote(str(there), tmp_path / "c")
    remote.folder.joinpath("x").write_text("3")
    order: list[str] = []
    put = remote._put
    remote._put = lambda name, data: (order.append(name), put(name, data))[1]  # type: ignore[method-assign,func-returns-value]
    assert remote.push()
    assert order[-1] == INDEX
    assert not remote.push()


def test_a_copy_killed_half_way_is_a_smaller_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "bucket"
    with at_hand(str(there), tmp_path / "a") as a:
        _write(a, changes="1", stays="2")
    with monkeypatch.context() as broken:
        put = Remote._put

        def killed(self: Remote, name: str, data: bytes | None) -> None:
            if name == "new":
                raise OSError("killed")
            put(self, name, data)

        broken.setattr(Remote, "_put", killed)
        with pytest.raises(InputError, match="does not take the result") as said, \
                at_hand(str(there), tmp_path / "a") as a:
            _write(a, changes="3", new="4")
        assert said.value.got == "killed"
    with at_hand(str(there), tmp_path / "b") as b:
        assert _files(b) == {"stays": "2"}
    with at_hand(str(there), tmp_path / "a") as a:
        assert _files(a) == {"changes": "3", "new": "4", "stays": "2"}
    with at_hand(str(there), tmp_path / "b") as b:
        assert _files(b) == {"changes": "3", "new": "4", "stays": "2"}


def test_what_could_not_be_copied_is_kept_and_what_was_removed_elsewhere_does_not_come_back(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "bucket"
    with at_hand(str(there), tmp_path / "a") as a:
        _write(a, result="old", part="1")

    def away(self: Remote) -> bool:
        raise OSError("away")

    with monkeypatch.context() as broken:
        broken.setattr(Remote, "push", away)
        with pytest.raises(InputError, match="does not take the result") as said, \
                at_hand(str(there), tmp_path / "a") as a:
            _write(a, result="new")
        assert said.value.got == "away"
    with at_hand(str(there), tmp_path / "b") as b:
        assert _files(b) == {"part": "1", "result": "old"}
        (b / "part").unlink()
    with at_hand(str(there), tmp_path / "a") as a:
        assert _files(a) == {"result": "new"}
    with at_hand(str(there), tmp_path / "b") as b:
        assert _files(b) == {"result": "new"}


@pytest.mark.parametrize("index", ["", "{", "[]", '{"files": null}', '{"files": {"x": 3}}', '{"files": {"x": {}}}'])
def test_a_damaged_index_is_one_line(index: str, tmp_path: Path) -> None:
    _write(tmp_path / "bucket", **{INDEX: index})
    with pytest.raises(InputError, match="damaged index"), at_hand(str(tmp_path / "bucket"), tmp_path / "a"):
        pass


def test_a_folder_of_other_tools_is_read_and_left_as_it_is(tmp_path: Path) -> None:
    there = tmp_path / "bucket"
    _write(there, x="1")
    with at_hand(str(there), tmp_path / "a") as a:
        assert _files(a) == {"x": "1"}
    with at_hand(f"{there}/x", tmp_path / "b") as file:
        assert file.read_text() == "1"
    assert not (there / INDEX).exists()
    _write(there, **{"__..__escape": "1"})
    (there / INDEX).write_text(json.dumps({"files": {"../escape": {"bytes": 1, "sha256": "0"}}}))
    with pytest.raises(InputError, match="not one of ours"), at_hand(str(there), tmp_path / "a"):
        pass


def test_only_addresses_of_folders_are_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import contextlib

    import recsys.remote as remote

    monkeypatch.setattr(remote, "at_hand", lambda address: contextlib.nullcontext(Path("/here") / address[5:]))

    def words(*given: str) -> list[str]:
        with addresses_at_hand(given) as found:
            return found

    assert words("-v", "train", "x.yaml", "--out", "s3://b/run") == ["-v", "train", "x.yaml", "--out", "/here/b/run"]
    assert words("prepare", "x", "--out=s3://b/run") == ["prepare", "x", "--out=/here/b/run"]
    kept = ["train", "x.yaml", "--out", "o", "--set", "training.mirror=s3://b/r", "--set", "s3://odd"]
    assert words(*kept) == kept
    kept = ["load-users", "u.parquet", "--redis", "redis://localhost:6379/0"]  # the verb's own kind of address
    assert words(*kept) == kept
    assert words("score", "--input", "s3://b/x") == ["score", "--input", "s3://b/x"]
    assert words("ope", "s3://b/x", "--target=s3://b/y=1") == ["ope", "/here/b/x", "--target=/here/b/y=1"]
    with pytest.raises(InputError, match=r"^s3://b/x/ads\.parquet, row 3: odd; got 1$"), \
            addresses_at_hand(["embed", "s3://b/x"]) as found:
        raise InputError("odd", file=Path(found[1]) / "ads.parquet", row=3, got=1)
    with pytest.raises(InputError, match=r"^/elsewhere: odd$"), addresses_at_hand(["embed", "s3://b/x"]):
        raise InputError("odd", file="/elsewhere")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="several ranks"):
        words("train", "x.yaml", "--out", "s3://b/run")


@pytest.mark.slow
@pytest.mark.parametrize("store", STORES)
def test_verbs_take_addresses(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared on one machine, embedded and indexed on the next, searched on a third: all they share is a bucket."""
    def run(machine: str, *words: str) -> None:
        monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / machine))
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        assert ended.value.code == 0

    recipe = Path(__file__).parents[1] / "data" / "marketplace.yaml"
    small = tmp_path / "small.yaml"
    small.write_text(recipe.read_text().replace("users: 3000", "users: 200").replace("ads: 1400", "ads: 120")
                     .replace("requests: 160000", "requests: 2000"))
    with STORES[store]() as (address, _):
        with pytest.raises(InputError, match="no such bucket; got 'nowhere'"):
            at_hand(address.replace("runs", "nowhere") + "/ads", tmp_path / "x").__enter__()
        there = f"{address}/team/ads"
        run("a", "prepare", str(small), "--out", there)
        run("b", "embed", there, "--model", "hashed")
        run("c", "index", there, "--model", "hashed")
        shutil.rmtree(tmp_path / "a")
        run("a", "index", there, "--model", "hashed")  # on the first machine again, which has lost everything: done
        system, root = filesystem(there)
        with system.open_input_stream(f"{root}/{INDEX}") as stream:
            names = json.loads(stream.read())["files"]
        assert {"impressions.parquet", "manifest.json", "content/hashed/manifest.json",
                "index/hashed/CURRENT.json"} <= set(names)
