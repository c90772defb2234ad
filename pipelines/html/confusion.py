"""Confusion matrices: most confused pairs of classes, a table, and the whole matrix as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

MAX_CLASSES_IN_TABLE = 24  # rows and columns of the table of numbers
MAX_PAIRS = 60


class Pair(NamedTuple):
    """Videos of one class that were predicted as another.

    Attributes:
        label: name of the labeled class.
        predicted: name of the predicted class.
        num_videos: number of such videos.
        share: their share of the labeled class's videos.
    """

    label: str
    predicted: str
    num_videos: int
    share: float


class MatrixCell(NamedTuple):
    """Cell of the table of numbers.

    Attributes:
        num_videos: number of videos.
        share: their share of the row's class.
        is_correct: whether the cell is on the diagonal.
    """

    num_videos: int
    share: float
    is_correct: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Confusion:
    """Confusion matrix of a split.

    Attributes:
        classes: names of the C classes.
        counts: [C, C]; [i, j] is the number of videos of class i predicted as class j.
        unit: what is counted: videos, or frames.
    """

    classes: Sequence[str]
    counts: npt.NDArray[np.int64]
    unit: str = "videos"

    @cached_property
    def totals(self) -> npt.NDArray[np.int64]:
        """Number of videos of each class, shape [C]."""
        return np.asarray(self.counts.sum(1))

    @cached_property
    def pairs(self) -> list[Pair]:
        """Most confused pairs of classes, sorted by number of videos, then by share."""
        errors = self.counts - np.diag(self.counts.diagonal())
        labels, predicted = np.nonzero(errors)
        found = [
            Pair(
                self.classes[i],
                self.classes[j],
                int(errors[i, j]),
                float(errors[i, j] / self.totals[i]),
            )
            for i, j in zip(labels.tolist(), predicted.tolist(), strict=True)
        ]
        return sorted(found, key=lambda pair: (-pair.num_videos, -pair.share, pair))[:MAX_PAIRS]

    @property
    def is_small(self) -> bool:
        """Whether the table of numbers has room for all classes."""
        return len(self.classes) <= MAX_CLASSES_IN_TABLE

    @cached_property
    def table_classes(self) -> list[int]:
        """Classes of the table: all, or those of the most confused pairs, in the pairs' order."""
        if self.is_small:
            return list(range(len(self.classes)))
        number = {name: index for index, name in enumerate(self.classes)}
        chosen: dict[int, None] = {}
        for pair in self.pairs:
            more = {number[pair.label]: None, number[pair.predicted]: None}
            if len(chosen | more) > MAX_CLASSES_IN_TABLE:
                break
            chosen |= more
        return list(chosen)

    @property
    def table(self) -> list[tuple[str, list[MatrixCell]]]:
        """Rows of the table of numbers, as (class name, cells)."""
        return [
            (
                self.classes[i],
                [
                    MatrixCell(
                        int(self.counts[i, j]),
                        float(self.counts[i, j] / max(1, self.totals[i])),
                        i == j,
                    )
                    for j in self.table_classes
                ],
            )
            for i in self.table_classes
        ]

    @property
    def clustered_order(self) -> list[int]:
        """Order of all classes in which confused ones are neighbors.

        Each class is followed by the one, of those that are left, that is confused with it most.
        """
        either = (self.counts + self.counts.T).astype(np.float64)
        np.fill_diagonal(either, -1)
        is_left = np.ones(len(self.classes), dtype=bool)
        order = [int(either.max(1).argmax())]
        is_left[order[0]] = False
        while is_left.any():
            order.append(int(np.where(is_left, either[order[-1]], -2).argmax()))
            is_left[order[-1]] = False
        return order

    @property
    def data(self) -> dict[str, Any]:
        """JSON values for the page's script: classes, nonzero cells, and orders of the classes."""
        labels, predicted = np.nonzero(self.counts)
        accuracy = self.counts.diagonal() / np.maximum(1, self.totals)
        return {
            "unit": self.unit,
            "classes": list(self.classes),
            "totals": self.totals.tolist(),
            "cells": np.stack([labels, predicted, self.counts[labels, predicted]], 1).tolist(),
            "orders": {
                "confused": self.clustered_order,
                "name": list(range(len(self.classes))),
                "accuracy": np.argsort(accuracy, kind="stable").tolist(),
                "videos": np.argsort(-self.totals, kind="stable").tolist(),
            },
        }
