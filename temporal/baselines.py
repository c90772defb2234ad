"""Baselines for a model: linear probes and nearest neighbors on statistics of a video's features.

    probe_mean    linear probe on the mean of the frames' features
    probe_motion  linear probe on their mean, standard deviation and mean absolute step
    knn           nearest training videos by the mean, in cosine similarity

A model that is no better than `probe_mean` has found nothing in the order of frames. For a
classification, a probe is a logistic regression, whose strength of regularization is chosen by
cross-validation on the training split; for other tasks it is a ridge regression.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..manifests.feature_store import FeatureStore
from .config import TemporalConfig

NAMES = {
    "probe_mean": "linear probe, mean",
    "probe_motion": "linear probe, mean, std and step",
    "knn": "nearest neighbors, mean",
}
MAX_VIDEOS = 5000  # training videos that baselines are fitted to, evenly spaced over the split
MAX_TARGETS = 500_000  # videos times classes, beyond which fewer videos are taken
MAX_DIM = 1024  # principal dimensions of the statistics that a probe is fitted to
NUM_NEIGHBORS = 5
NUM_FOLDS = 5
STRENGTHS = np.logspace(-6, 1, 8)  # inverse strengths C of the logistic regression
SCALES = torch.logspace(-2, 6, 81)  # factors of a probe's logits to choose from
RIDGE_STRENGTHS = np.logspace(0, 7, 15)
MIN_GAIN = 0.003  # nats by which a probe must beat the classes' frequencies to take part
MAX_LOSS_OF_SCALE = 0.01  # nats beyond the least held-out loss, for logits of a smaller scale
MAX_LOGIT = 10.0  # root mean square of a probe's held-out logits
# Dimensions that hardly vary are scaled less: their variation may be rounding.
MIN_SCALE = 0.01  # of the root mean square of all standard deviations

Array = npt.NDArray[np.float32]


def feature_statistics(features: npt.NDArray[np.floating[Any]]) -> Array:
    """Return mean, standard deviation and mean absolute step of a video's features, [3 D].

    A step is the difference of two neighboring frames; statistics are averaged over views.

    Args:
        features: [T, D] or [T, V, D], T >= 1.

    >>> feature_statistics(np.array([[0.0], [2.0], [1.0]])).round(3).tolist()
    [1.0, 0.8159999847412109, 1.5]
    """
    rows = features.astype(np.float32).reshape(len(features), -1, features.shape[-1])
    steps = np.abs(np.diff(rows, axis=0)) if len(rows) > 1 else np.zeros_like(rows)
    return np.concatenate([one.mean(0) for one in (rows.mean(0), rows.std(0), steps.mean(0))])


@dataclass(frozen=True, kw_only=True, eq=False)
class Probe:
    """Fitted linear probe: weight @ (statistics - center) + bias.

    Attributes:
        weight: [K, F], K being the number of outputs, the classes or 1 for regression.
        center: [F], mean of the training videos' statistics.
        bias: [K].
        held_out: [N, C] logits of the training videos, each by a probe that was fitted without it;
            zeros if the probes are no better than the classes' frequencies. None for other tasks.
        held_out_loss: mean cross entropy of those; NaN for other tasks.
    """

    weight: Tensor
    center: Tensor
    bias: Tensor
    held_out: Tensor | None = None
    held_out_loss: float = float("nan")

    def logits(self, statistics: Tensor) -> Tensor:
        """Return the logits [N, K] of statistics [N, F]."""
        return F.linear(statistics - self.center, self.weight, self.bias)

    @property
    def is_informative(self) -> bool:
        """Whether its held-out logits are better than the classes' frequencies."""
        return self.held_out is not None and bool(self.held_out.any())


@dataclass(frozen=True, kw_only=True, eq=False)
class Baselines:
    """Fitted baselines.

    Attributes:
        mean: probe on the mean features, F = D.
        motion: probe on all statistics, F = 3 D.
        center: [D], mean of the training videos' mean features.
        scale: [D], their standard deviation.
        bank: [N, D], the training videos' standardized mean features, of length 1.
        values: [N, K], their targets; one-hot for a classification.
    """

    mean: Probe
    motion: Probe
    center: Tensor
    scale: Tensor
    bank: Tensor
    values: Tensor

    def logits(self, statistics: Iterable[Array], config: TemporalConfig) -> dict[str, Tensor]:
        """Return the logits [M, K] of each baseline.

        Args:
            statistics: [3 D] of each video, see `feature_statistics`.
            config: configuration of the model that the baselines stand beside.
        """
        rows = torch.from_numpy(np.stack(list(statistics)))
        mean = rows[:, : len(self.center)]
        similarity = F.normalize((mean - self.center) / self.scale) @ self.bank.T
        nearest = similarity.topk(min(NUM_NEIGHBORS, len(self.bank)), dim=1).indices
        votes = self.values[nearest].mean(1)
        if config.task == "classification":  # of equal votes, the nearest neighbor decides
            votes = votes + 1e-3 * self.values[nearest[:, 0]]
        found = {
            "probe_mean": self.mean.logits(mean),
            "probe_motion": self.motion.logits(rows),
            "knn": votes - 0.5 if config.task == "multi-label" else votes,
        }
        if config.task == "regression":
            return {name: values.double() for name, values in found.items()}
        return found

    def logits_of(
        self, store: FeatureStore, video_ids: Iterable[str], config: TemporalConfig
    ) -> dict[str, Tensor]:
        """Return the logits [M, K] of each baseline for stored videos."""
        return self.logits((feature_statistics(store[one].features) for one in video_ids), config)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return what predictions need, by name, as `from_tensors` takes it."""
        tensors = {
            f"{name}.{key}": getattr(probe, key)
            for name, probe in (("mean", self.mean), ("motion", self.motion))
            for key in ("weight", "center", "bias")
        }
        tensors |= {
            one.name: getattr(self, one.name)
            for one in fields(self)
            if one.name not in ("mean", "motion")
        }
        return {name: tensor.contiguous() for name, tensor in tensors.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Baselines":
        """Create baselines from the tensors of `to_tensors`; others are ignored."""
        mean, motion = (
            Probe(
                weight=tensors[f"{name}.weight"],
                center=tensors[f"{name}.center"],
                bias=tensors[f"{name}.bias"],
            )
            for name in ("mean", "motion")
        )
        names = [one.name for one in fields(cls) if one.name not in ("mean", "motion")]
        return cls(mean=mean, motion=motion, **{name: tensors[name] for name in names})


def fit_baselines(
    statistics: Iterable[Array], targets: Tensor, config: TemporalConfig, *, seed: int = 0
) -> Baselines:
    """Fit the baselines to training videos.

    Args:
        statistics: [3 D] of each video, see `feature_statistics`.
        targets: [N] or [N, C], see `temporal/tasks.py`.
        config: configuration of the model that the baselines stand beside.
        seed: seed of the folds.
    """
    rows = np.stack(list(statistics))
    dim = rows.shape[1] // 3
    mean = fit_probe(rows[:, :dim], targets, config, seed=seed)
    center, scale = rows[:, :dim].mean(0), scale_of(rows[:, :dim])
    return Baselines(
        mean=mean,
        motion=fit_probe(rows, targets, config, seed=seed),
        center=torch.from_numpy(center),
        scale=torch.from_numpy(scale),
        bank=F.normalize(torch.from_numpy((rows[:, :dim] - center) / scale)),
        values=_values(targets, config),
    )


def _values(targets: Tensor, config: TemporalConfig) -> Tensor:
    """Return the targets as numbers, [N, K] float32."""
    if config.task == "classification":
        return F.one_hot(targets, config.num_classes).float()
    return targets.float().reshape(len(targets), -1)


def fit_probe(rows: Array, targets: Tensor, config: TemporalConfig, *, seed: int) -> Probe:
    """Fit a linear probe to statistics [N, F], which are standardized first."""
    center, scale = rows.mean(0), scale_of(rows)
    standardized = (rows - center) / scale
    basis = _basis(standardized)
    inputs = standardized @ basis.T
    held_out, loss = None, float("nan")
    if config.task == "classification":
        weight, bias, held_out, loss = _logistic(inputs, targets, config.num_classes, seed)
    else:
        weight, bias = _ridge(inputs, _values(targets, config).numpy())
        if config.task == "multi-label":
            bias = bias - 0.5  # a class is predicted from 0 on
    weight = (weight @ basis) / scale
    return Probe(
        weight=torch.from_numpy(weight.astype(np.float32)),
        center=torch.from_numpy(center),
        bias=torch.from_numpy(bias.astype(np.float32)),
        held_out=held_out,
        held_out_loss=loss,
    )


def scale_of(rows: Array) -> Array:
    """Return the standard deviation of each column, [F], but for those that hardly vary.

    >>> [round(float(one), 3) for one in scale_of(np.array([[0.0, 1.0], [2.0, 1.0]]))]
    [1.0, 0.007]
    """
    return floored(rows.std(0))


def floored(deviations: Array) -> Array:
    """Return standard deviations [F], none of them below a share of their root mean square."""
    least = MIN_SCALE * float(np.sqrt(np.square(deviations).mean())) or 1.0
    return np.asarray(np.maximum(deviations, least), dtype=np.float32)


def _basis(rows: Array) -> Array:
    """Return orthonormal vectors [R, F] that span rows [N, F], at most `MAX_DIM` principal ones.

    The solution of a penalized regression lies in the span of its rows.
    """
    if len(rows) < rows.shape[1]:
        basis = np.linalg.svd(rows, full_matrices=False)[2]
    else:
        basis = np.linalg.eigh(rows.T.astype(np.float64) @ rows)[1].T[::-1]
    return np.ascontiguousarray(basis[:MAX_DIM], dtype=np.float32)


def _logistic(
    inputs: Array, targets: Tensor, num_classes: int, seed: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], Tensor, float]:
    """Fit a logistic regression; its strength and the scale of its logits minimize held-out loss.

    Returns:
        Weight [C, R], bias [C], held-out logits [N, C], and their mean cross entropy.
    """
    from sklearn.linear_model import LogisticRegression  # takes a second, as many trainings do

    labels = targets.numpy()
    prior = np.log((np.bincount(labels, minlength=num_classes) + 1e-3) / len(labels))
    prior_logits = torch.from_numpy(prior).float()
    least = float(F.cross_entropy(prior_logits.expand(len(labels), -1), targets)) - MIN_GAIN
    weight = np.zeros((num_classes, inputs.shape[1]))
    folds = list(_folds(labels, seed))
    best_loss, best = least, None
    found = torch.zeros(len(labels), num_classes)
    for strength in STRENGTHS if folds else ():
        logits = prior_logits.repeat(len(labels), 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of weak regularization, which does not converge
            model = LogisticRegression(C=strength, max_iter=200, tol=1e-3)
            for fitted, held_out in folds:
                model.fit(inputs[fitted], labels[fitted])
                logits[held_out] = _all_logits(model, inputs[held_out], num_classes)
        losses = torch.stack([F.cross_entropy(logits * scale, targets) for scale in SCALES])
        if float(losses.min()) < best_loss:
            scale = float(SCALES[losses <= losses.min() + MAX_LOSS_OF_SCALE][0])
            scale = min(scale, MAX_LOGIT / float(logits.square().mean().sqrt()))
            best_loss, best, found = float(losses.min()), (strength, scale), logits * scale
        elif float(losses.min()) > best_loss + 0.1:
            break  # weaker ones are worse
    if best is None:
        return weight, prior, found, least + MIN_GAIN
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LogisticRegression(C=best[0], max_iter=500, tol=1e-4).fit(inputs, labels)
    rows = np.vstack([np.eye(inputs.shape[1]), np.zeros(inputs.shape[1])])
    columns = _all_logits(model, rows, num_classes).double().numpy() * best[1]
    bias = columns[-1]
    return (columns[:-1] - bias).T, bias, found, best_loss


def _folds(labels: npt.NDArray[np.int64], seed: int) -> Iterator[tuple[Any, Any]]:
    """Yield (fitted, held-out) row numbers of each fold; none if there are too few videos."""
    from sklearn.model_selection import KFold, StratifiedKFold  # see `_logistic`

    counts = np.bincount(labels)
    fewest = int(counts[counts > 0].min())
    kind = StratifiedKFold if fewest >= 2 else KFold
    num_folds = min(NUM_FOLDS, fewest if fewest >= 2 else len(labels))
    if num_folds < 2 or (counts > 0).sum() < 2:
        return
    for fitted, held_out in kind(num_folds, shuffle=True, random_state=seed).split(labels, labels):
        if len(np.unique(labels[fitted])) > 1:
            yield fitted, held_out


def _all_logits(model: Any, inputs: npt.NDArray[Any], num_classes: int) -> Tensor:
    """Return the logits [N, C] of a scikit-learn classifier, which may know fewer classes."""
    scores = torch.from_numpy(np.asarray(model.decision_function(inputs))).float()
    if scores.ndim == 1:
        scores = torch.stack([-scores / 2, scores / 2], dim=1)
    logits = scores.new_full((len(scores), num_classes), float(scores.min()) - 10.0)
    logits[:, torch.from_numpy(model.classes_)] = scores
    return logits


def _ridge(inputs: Array, values: Array) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return weight [K, R] and bias [K] of a ridge regression."""
    from sklearn.linear_model import RidgeCV  # see `_logistic`

    model = RidgeCV(RIDGE_STRENGTHS).fit(inputs, values)
    return np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)


def fitted_rows(num_rows: int, num_outputs: int) -> list[int]:
    """Return the numbers of the rows that baselines are fitted to, evenly spaced.

    >>> fitted_rows(5, 2), len(fitted_rows(240_000, 10)), len(fitted_rows(240_000, 400))
    ([0, 1, 2, 3, 4], 5000, 1250)
    """
    count = min(num_rows, MAX_VIDEOS, max(1, MAX_TARGETS // num_outputs))
    return [number * num_rows // count for number in range(count)]
