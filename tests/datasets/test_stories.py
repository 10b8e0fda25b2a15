from __future__ import annotations

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.datasets.stories import story_ids

edges = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("uvwxyz")), min_size=1, max_size=20)


def test_a_chain_of_shared_texts_is_one_story() -> None:
    groups, texts = ["t3", "t1", "t1", "t2", "t9"], ["x", "x", "y", "y", "z"]
    assert story_ids(pa.array(groups), pa.array(texts)).to_pylist() == ["t1", "t1", "t1", "t1", "t9"]
    assert len(story_ids(pa.array([], pa.string()), pa.array([], pa.string()))) == 0


@settings(max_examples=40, deadline=None)
@given(edges)
def test_equals_a_plain_union_find(rows: list[tuple[str, str]]) -> None:
    story = {g: {g} for g, _ in rows}
    for g, t in rows:  # merge until nothing changes, the slow and obvious way
        for h, u in rows:
            if t == u:
                merged = story[g] | story[h]
                for member in merged:
                    story[member] = merged
    for _ in rows:
        for g, members in story.items():
            for member in list(members):
                members |= story[member]
            story[g] = members
    got = story_ids(pa.array([g for g, _ in rows]), pa.array([t for _, t in rows])).to_pylist()
    assert got == [min(story[g]) for g, _ in rows]


@settings(max_examples=40, deadline=None)
@given(edges, st.randoms())
def test_order_of_rows_does_not_matter(rows: list[tuple[str, str]], random: object) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    def named(r: list[tuple[str, str]]) -> dict[tuple[str, str], str]:
        return dict(zip(r, story_ids(pa.array([g for g, _ in r]), pa.array([t for _, t in r])).to_pylist(),
                        strict=True))

    assert named(rows) == named(shuffled)
