"""A configuration that no model can have is an error that names the option."""

import pytest
from temporal_models import small_config
from vtnpipe.manifests.errors import SettingsError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"encoder": "bert"},
            "--encoder 'bert': it must be longformer, full, uniform, attentive, mean, hf:NAME or",
        ),
        ({"encoder": "perceiver"}, "--encoder 'perceiver'"),
        ({"head": "linear"}, "--head 'linear': it must be mlp or package.module:factory"),
        ({"task": "ranking"}, "--task 'ranking': it must be one of classification, multi-label"),
        ({"position_embedding": "rotary"}, "--position-embedding 'rotary': .* learned, sinus"),
        ({"num_layers": 0}, "--layers 0: it must be a whole number, at least 1"),
        ({"num_heads": 0}, "--heads 0: it must be"),
        ({"num_heads": 5}, "--heads 5: .* must divide the tokens' 24"),
        ({"attention_window": 18.0}, "--attention-window 18.0: it must be a whole number"),
        ({"attention_window": 17}, "--attention-window 17: it must be even"),
        ({"attention_window": 0}, "--attention-window 0"),
        ({"max_positions": 2}, "--max-positions 2: it must be at least 3"),
        ({"attention_dropout": 1.5}, "--attention-dropout 1.5: it must be between 0 and 1"),
        ({"task": "regression"}, "--task regression: the model has 5 outputs"),
        ({"task": "regression", "num_classes": 1, "target_std": 0.0}, "labels that differ"),
    ],
)
def test_an_invalid_value_is_an_error(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        small_config(**changes)
