"""The default recipe, and the learning rate of each parameter."""

import pytest
import torch
from vtnpipe.temporal.optim import Recipe


def test_the_default_recipe_is_the_papers() -> None:
    recipe = Recipe()
    assert recipe.optimizer == "sgd"
    assert (recipe.momentum, recipe.lr, recipe.epochs, recipe.batch_size) == (0.9, 1e-3, 25, 16)
    assert recipe.schedule == "steps"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_learning_rates_are_scaled_by_parameter(optimizer: str) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    module[0].weight.requires_grad_(False)
    recipe = Recipe(optimizer=optimizer, lr=0.1, weight_decay=0.01)  # type: ignore[arg-type]
    groups = recipe.make_optimizer(module, {"0.bias": 0.5, "1.weight": 0.5}).param_groups
    assert {group["weight_decay"] for group in groups} == {0.01}
    found = {id(one): group["lr"] for group in groups for one in group["params"]}
    rates = {"0.bias": 0.05, "1.weight": 0.05, "1.bias": 0.1}
    assert found == {id(module.get_parameter(name)): lr for name, lr in rates.items()}
