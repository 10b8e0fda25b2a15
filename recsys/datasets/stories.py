"""Stories: connected components of decision groups that share an ad text."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def story_ids(groups: pa.ChunkedArray | pa.Array, texts: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Name the connected component of every row in the graph whose edges are (group, text).

    Two groups (tests) that show the same text are one story, and so are groups linked through a chain of others.
    A split that keeps stories whole keeps every text on one side.

    Args:
        groups: strings [N], the decision group of each row.
        texts: strings [N], the identity of the text shown.

    Returns:
        Strings [N]: the first (in string order) group id of the row's component, so the names do not
        depend on the order of rows.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    group, text = _codes(groups), _codes(texts)
    n, m = len(group.dictionary), len(text.dictionary)
    left, right = group.indices.to_numpy(), text.indices.to_numpy()
    edges = coo_matrix((np.ones(len(left), np.int8), (left, right + n)), shape=(n + m, n + m))
    _, component = connected_components(edges, directed=False)
    names = group.dictionary.to_numpy(zero_copy_only=False).astype(str)
    order = np.argsort(names, kind="stable")
    first = np.full(component.max(initial=-1) + 1, -1)
    first[component[order[::-1]]] = order[::-1]  # the last write, by the smallest name, stays
    return pa.array(names[first[component[left]]], pa.string())


def _codes(column: pa.ChunkedArray | pa.Array) -> pa.DictionaryArray:
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return whole.cast(pa.string()).dictionary_encode()
