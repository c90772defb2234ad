"""Encoders of Hugging Face transformers: `--encoder hf:modernbert`, with random weights.

A model with `inputs_embeds` gets [CLS] and the tokens, and the encoder returns its final state of
[CLS]. Width, depth and heads are those of the `TemporalConfig`; positions are the model's own,
which count tokens.
"""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..manifests.errors import SettingsError, first_line
from .config import TemporalConfig

PREFIX = "hf:"
MAX_TOKENS = 16_384  # rows of a learned position embedding
MAX_CHANGE = 1e-4  # of the state of [CLS] by padding


class HfEncoder(nn.Module):
    """Transformer of Hugging Face over a learned [CLS] followed by the tokens.

    Args:
        config: configuration of the temporal model, whose encoder is `hf:NAME`.

    Raises:
        SettingsError: there is no such model, it cannot take the configuration, or padding or
            distant tokens change its state of [CLS] as they should not.
    """

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, config.token_dim))
        self.model = _create(config)
        names = inspect.signature(self.model.forward).parameters
        self._has_global_attention = "global_attention_mask" in names
        self.dropout = nn.Dropout(config.dropout)
        if torch.get_default_device().type != "meta":
            self._check(config)

    def forward(self, tokens: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Return one vector per clip, [B, W].

        Args:
            tokens: [B, T, W].
            positions: [B, T]; ignored.
            mask: [B, T] bool, True for frames, False for padding.
        """
        return self._states(tokens, mask)[:, 0]

    def frame_states(self, tokens: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Return one vector per frame, [B, T, W]; for the arguments see `forward`."""
        return self._states(tokens, mask)[:, 1:]

    def _states(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the final states of [CLS] and the frames, [B, 1 + T, W]."""
        B, T, _ = tokens.shape
        if T >= MAX_TOKENS:
            raise SettingsError(
                f"{T:,} frames: this encoder takes at most {MAX_TOKENS - 1:,}; extract at a lower "
                "--fps, or use --encoder longformer"
            )
        tokens = torch.cat([self.cls_token.expand(B, -1, -1), self.dropout(tokens)], dim=1)
        mask = F.pad(mask, (1, 0), value=True)
        options: dict[str, Tensor] = {}
        if self._has_global_attention:
            options["global_attention_mask"] = F.pad(torch.ones_like(mask[:, :1]), (0, T)).long()
        output = self.model(inputs_embeds=tokens, attention_mask=mask.long(), **options)
        states: Tensor = output.last_hidden_state[:, : 1 + T]
        return states

    @torch.no_grad()
    def _check(self, config: TemporalConfig) -> None:
        """Refuse a model that padding changes, or whose [CLS] does not depend on later tokens."""
        was_training = self.training
        self.eval()
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randn(1, 70, config.token_dim, generator=generator)
        positions, mask = torch.arange(70)[None], torch.ones(1, 70, dtype=torch.bool)
        mask[:, 40:] = False
        try:
            short = self(tokens[:, :40], positions[:, :40], mask[:, :40])
            padded = self(tokens, positions, mask)
            tokens[:, 39] = tokens[:, 50]
            other = self(tokens[:, :40], positions[:, :40], mask[:, :40])
        except Exception as error:
            raise _refused(config, f"fails on {list(tokens.shape)}: {first_line(error)}") from error
        if float((short - padded).abs().max()) > MAX_CHANGE:
            raise _refused(config, "padding changes its output")
        if torch.equal(short, other):
            raise _refused(config, "its first token does not see the later ones")
        self.train(was_training)


def _create(config: TemporalConfig) -> nn.Module:
    """Create the transformer that a configuration names.

    Raises:
        SettingsError: there is no such model, or it cannot take the configuration.
    """
    from transformers import AutoConfig, AutoModel  # takes seconds to import

    name = config.encoder.removeprefix(PREFIX)
    width = config.token_dim
    values: dict[str, Any] = {
        "hidden_size": width,
        "embedding_size": width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_dim,
        "max_position_embeddings": MAX_TOKENS,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "attention_dropout": config.attention_dropout,
        # No words: tokens are features.
        "vocab_size": 4,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    }
    try:
        settings = AutoConfig.for_model(name, **values)
        if isinstance(getattr(settings, "attention_window", None), int | list):
            settings.attention_window = [config.attention_window] * config.num_layers
        found: nn.Module = AutoModel.from_config(settings)  # type: ignore[no-untyped-call]
    except Exception as error:  # noqa: BLE001  # each model checks its settings in its own way
        raise _refused(config, first_line(error)) from None
    if "inputs_embeds" not in inspect.signature(found.forward).parameters:
        raise _refused(config, "it takes no inputs_embeds")
    return found


def _refused(config: TemporalConfig, fault: str) -> SettingsError:
    return SettingsError(
        f"--encoder {config.encoder}: cannot be used here: {fault}; known to work are "
        "hf:modernbert, hf:roformer, hf:longformer, hf:big_bird and hf:bert"
    )
