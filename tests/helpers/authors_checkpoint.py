"""Checkpoints in the format of the authors' code, of a network with transformers' Longformer."""

from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from longformer_reference import longformer_model, run_longformer_model
from torch import Tensor, nn
from vtnpipe.temporal.config import TemporalConfig

BACKBONE = "vit_tiny_patch16_224"
CONFIG = TemporalConfig(
    feature_dim=192,
    num_classes=7,
    num_layers=2,
    num_heads=6,
    attention_window=32,
    intermediate_dim=100,
    max_positions=120,
    head_dim=50,
)


class AuthorsNetwork(nn.Module):
    """A network whose parameters have the names of the authors' code."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        D = CONFIG.feature_dim
        self.backbone = timm.create_model(BACKBONE, num_classes=0)
        self.cls_token = nn.Parameter(torch.randn(1, 1, D))
        self.temporal_encoder = longformer_model(CONFIG)
        self.mlp_head = nn.Sequential(
            nn.LayerNorm(D),
            nn.Linear(D, CONFIG.head_dim),
            nn.GELU(),
            nn.Dropout(0.5),
            nn.Linear(CONFIG.head_dim, CONFIG.num_classes),
        )
        for parameter in (*self.temporal_encoder.parameters(), *self.mlp_head.parameters()):
            nn.init.normal_(parameter, std=0.1)
        self.eval()

    def temporal(self, features: Tensor, positions: Tensor) -> Tensor:
        mask = torch.ones_like(positions, dtype=torch.bool)
        states = run_longformer_model(
            self.temporal_encoder, self.cls_token, features, positions, mask
        )
        logits: Tensor = self.mlp_head(states[:, 0])
        return logits

    def forward(self, frames: Tensor, positions: Tensor) -> Tensor:
        features = self.backbone(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        return self.temporal(features, positions)


def write_checkpoint(
    network: AuthorsNetwork, path: Path, *, cfg: dict[str, Any] | None = None, **vtn: Any
) -> Path:
    """Write the network's checkpoint; `vtn` changes entries of its cfg."""
    section = {
        "PRETRAINED": False,
        "MLP_DIM": CONFIG.head_dim,
        "HIDDEN_DIM": CONFIG.feature_dim,
        "MAX_POSITION_EMBEDDINGS": CONFIG.max_positions,
        "NUM_ATTENTION_HEADS": CONFIG.num_heads,
        "NUM_HIDDEN_LAYERS": CONFIG.num_layers,
        "ATTENTION_MODE": "sliding_chunks",
        "PAD_TOKEN_ID": -1,
        "ATTENTION_WINDOW": [CONFIG.attention_window] * CONFIG.num_layers,
        "INTERMEDIATE_SIZE": CONFIG.intermediate_dim,
        "ATTENTION_PROBS_DROPOUT_PROB": 0.1,
        "HIDDEN_DROPOUT_PROB": 0.1,
    }
    if cfg is None:
        cfg = {"MODEL": {"ARCH": "VIT", "NUM_CLASSES": CONFIG.num_classes}, "VTN": section | vtn}
    state = {"epoch": 24, "model_state": network.state_dict(), "cfg": yaml.safe_dump(cfg)}
    torch.save(state, path)
    return path
