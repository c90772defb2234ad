"""The usual loop over videos, as in most tools: python usual_loop.py BACKBONE VIDEO ...

One process, float32, one frame after the other: decoded by PyAV, transformed by PIL as timm says,
computed in batches of 32 of the same video; random weights.
"""

import sys
from typing import Any

import av
import timm
import torch
from timm.data import create_transform, resolve_model_data_config


def main(backbone: str, *paths: str) -> None:
    """Compute the features of the videos, and print their number."""
    model = timm.create_model(backbone, num_classes=0).eval()
    transform: Any = create_transform(**resolve_model_data_config(model), is_training=False)
    features: list[torch.Tensor] = []
    container: Any
    with torch.inference_mode():
        for path in paths:
            batch: list[torch.Tensor] = []
            with av.open(path) as container:
                for frame in container.decode(video=0):
                    batch.append(transform(frame.to_image()))
                    if len(batch) == 32:
                        features.append(model(torch.stack(batch)))
                        batch = []
            if batch:
                features.append(model(torch.stack(batch)))
    print(sum(map(len, features)), "frames")


if __name__ == "__main__":
    main(*sys.argv[1:])
