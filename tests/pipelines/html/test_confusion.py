"""Confusion matrices: the most confused pairs, the table, and the order of the classes."""

import numpy as np
from vtnpipe.pipelines.html.confusion import MAX_CLASSES_IN_TABLE, Confusion


def test_the_most_confused_pairs_come_first_and_side_by_side() -> None:
    counts = np.array([[5, 0, 5, 0], [0, 9, 0, 1], [3, 0, 7, 0], [0, 0, 0, 0]])
    confusion = Confusion(classes=list("abcd"), counts=counts)
    found = [(pair.label, pair.predicted, pair.num_videos, pair.share) for pair in confusion.pairs]
    assert found == [("a", "c", 5, 0.5), ("c", "a", 3, 0.3), ("b", "d", 1, 0.1)]
    order = confusion.clustered_order
    assert sorted(order) == [0, 1, 2, 3]
    assert abs(order.index(0) - order.index(2)) == 1
    assert abs(order.index(1) - order.index(3)) == 1
    assert sum(n for _, _, n in confusion.data["cells"]) == counts.sum()
    assert all(sorted(one) == [0, 1, 2, 3] for one in confusion.data["orders"].values())
    assert confusion.data["orders"]["accuracy"] == [3, 0, 2, 1]


def test_the_table_of_few_classes_has_all_of_them() -> None:
    confusion = Confusion(classes=["a", "b"], counts=np.array([[3, 1], [0, 0]]))
    assert confusion.is_small
    first, second = confusion.table
    assert [(c.num_videos, c.share, c.is_correct) for c in first[1]] == [
        (3, 0.75, True),
        (1, 0.25, False),
    ]
    assert [(c.num_videos, c.share) for c in second[1]] == [(0, 0.0), (0, 0.0)]


def test_the_table_of_many_classes_has_those_of_the_most_confused_pairs() -> None:
    counts = np.diag(np.full(100, 10))
    counts[70, 3] = 8
    confusion = Confusion(classes=[f"c{n}" for n in range(100)], counts=counts)
    assert not confusion.is_small
    assert [name for name, _ in confusion.table] == ["c70", "c3"]
    assert confusion.table[0][1][1].num_videos == 8
    counts = np.diag(np.full(100, 10)) + np.eye(100, k=1, dtype=int)
    confusion = Confusion(classes=[f"c{n}" for n in range(100)], counts=counts)
    assert len(confusion.table) == MAX_CLASSES_IN_TABLE
