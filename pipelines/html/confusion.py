"""What is taken for what: a confusion matrix as a page and TensorBoard show it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

MAX_CLASSES_IN_TABLE = 24  # of a matrix whose cells are numbers
MAX_PAIRS = 60


class Pair(NamedTuple):
    """Videos of one class that were taken for another."""

    label: str
    predicted: str
    num_videos: int
    share: float  # of the class's videos


class MatrixCell(NamedTuple):
    """Of a matrix whose cells are numbers."""

    num_videos: int
    share: float  # of the row's class
    is_right: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Confusion:
    """A confusion matrix.

    Attributes:
        classes: [C].
        counts: [C, C]; [i, j] counts videos of class i taken for class j.
    """

    classes: Sequence[str]
    counts: npt.NDArray[np.int64]

    @cached_property
    def totals(self) -> npt.NDArray[np.int64]:
        """[C] videos of each class."""
        return np.asarray(self.counts.sum(1))

    @cached_property
    def pairs(self) -> list[Pair]:
        """Those that are confused most, by videos and then by share."""
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
        """Whether all of it can be a table of numbers."""
        return len(self.classes) <= MAX_CLASSES_IN_TABLE

    @cached_property
    def shown(self) -> list[int]:
        """The classes of the table: all, or those of the worst pairs, in order of confusion."""
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
        """The shown classes' rows."""
        return [
            (
                self.classes[i],
                [
                    MatrixCell(
                        int(self.counts[i, j]),
                        float(self.counts[i, j] / max(1, self.totals[i])),
                        i == j,
                    )
                    for j in self.shown
                ],
            )
            for i in self.shown
        ]

    @property
    def together(self) -> list[int]:
        """An order of all classes in which those that are confused are neighbors: each is
        followed by the one that is confused with it most, of those that are left.
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
        """For the page's script: classes, the cells that are not 0, and orders of the classes."""
        labels, predicted = np.nonzero(self.counts)
        accuracy = self.counts.diagonal() / np.maximum(1, self.totals)
        return {
            "classes": list(self.classes),
            "totals": self.totals.tolist(),
            "cells": np.stack([labels, predicted, self.counts[labels, predicted]], 1).tolist(),
            "orders": {
                "confused": self.together,
                "name": list(range(len(self.classes))),
                "accuracy": np.argsort(accuracy, kind="stable").tolist(),
                "videos": np.argsort(-self.totals, kind="stable").tolist(),
            },
        }


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """The 95% interval of a share, by Wilson's score (J. Am. Stat. Assoc. 22, 1927, p. 209).

    >>> low, high = wilson_interval(8, 10)
    >>> round(low, 3), round(high, 3)
    (0.49, 0.943)
    """
    z = 1.959964
    share, spread = right / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * (share * (1 - share) / total + spread / (4 * total)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)
