"""Recipes: the authors' optimizer, weight decay, epochs, the kept epoch, learning rates."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from vtnpipe.temporal.config import TemporalConfig
from vtnpipe.temporal.model import TemporalClassifier
from vtnpipe.temporal.optim import Recipe, RecipeName, named_recipe


def _named(
    name: RecipeName, *, num_clips: int = 100, num_validation_videos: int = 50, **given: Any
) -> Recipe:
    return named_recipe(
        name, given, num_clips=num_clips, num_validation_videos=num_validation_videos
    )


def test_the_recipe_paper_is_the_authors() -> None:
    recipe = _named("paper")
    assert recipe == Recipe()
    assert (recipe.optimizer, recipe.momentum, recipe.lr) == ("sgd", 0.9, 1e-3)
    assert (recipe.epochs, recipe.batch_size, recipe.weight_decay) == (25, 16, 1e-4)
    assert (recipe.schedule, recipe.keep, recipe.drop_last) == ("steps", "last", True)


def test_steps_equal_those_of_the_authors_optimizer() -> None:
    """Their code: two groups, no weight decay for BatchNorm; SGD with dampening 0 and Nesterov."""
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.LayerNorm(8), nn.Linear(8, 3))
    theirs = copy.deepcopy(ours)
    optimizer = Recipe().make_optimizer(ours)
    norm = list(theirs[1].parameters())
    others = [p for n, part in enumerate(theirs) if n != 1 for p in part.parameters()]
    reference = torch.optim.SGD(
        [{"params": norm, "weight_decay": 0.0}, {"params": others, "weight_decay": 1e-4}],
        lr=1e-3,
        momentum=0.9,
        weight_decay=1e-4,
        dampening=0.0,
        nesterov=True,
    )
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        optimizer.step()
        reference.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_adamw_decays_weight_matrices_only() -> None:
    config = TemporalConfig(feature_dim=12, num_classes=2, hidden_dim=8, num_heads=2, num_layers=1)
    model = TemporalClassifier(config)
    groups = _named("features").make_optimizer(model).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(p)] for g in groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and "embeddings" not in name and "cls_token" not in name
    }


@pytest.mark.parametrize(("num_clips", "epochs"), [(16, 60), (180, 34), (300, 22), (5000, 10)])
def test_small_splits_get_more_epochs(num_clips: int, epochs: int) -> None:
    recipe = _named("features", num_clips=num_clips)
    assert (recipe.epochs, recipe.warmup_epochs) == (epochs, pytest.approx(epochs / 10))
    assert _named("paper", num_clips=num_clips) == Recipe()
    given = _named("features", num_clips=num_clips, epochs=50, lr=1e-2)
    assert (given.epochs, given.warmup_epochs, given.lr) == (50, 5.0, 1e-2)


def test_the_best_epoch_is_kept_where_validation_can_choose() -> None:
    assert _named("features", num_validation_videos=999).keep == "last"
    assert _named("features", num_validation_videos=1000).keep == "best"
    assert _named("paper", num_validation_videos=1000).keep == "last"
    assert _named("paper", keep="auto", patience=3).keep == "best"
    assert _named("features", keep="best").keep == "best"


def test_incomplete_batches_are_left_out_if_there_are_others() -> None:
    assert Recipe().num_steps(37) == 2
    assert Recipe().num_steps(7) == 1
    assert Recipe(drop_last=False).num_steps(37) == 3


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_learning_rates_are_scaled_by_parameter(optimizer: str) -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].weight.requires_grad_(False)
    recipe = Recipe(optimizer=optimizer, lr=0.1, weight_decay=0.01)  # type: ignore[arg-type]
    groups = recipe.make_optimizer(module, {"0.bias": 0.5, "1.weight": 0.5}).param_groups
    found = {id(one): group["lr"] for group in groups for one in group["params"]}
    rates = {"0.bias": 0.05, "1.weight": 0.05, "1.bias": 0.1}
    assert found == {id(module.get_parameter(name)): lr for name, lr in rates.items()}
