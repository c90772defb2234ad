"""Logits of frames: windows against one pass, several views, encoders, and bounded memory."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from vtnpipe.manifests.errors import SettingsError
from vtnpipe.manifests.feature_store import FeatureStore
from vtnpipe.manifests.shards import VideoPart
from vtnpipe.temporal.clips import Windows
from vtnpipe.temporal.config import TemporalConfig
from vtnpipe.temporal.dataset import ClipDataset
from vtnpipe.temporal.distributed import accelerated
from vtnpipe.temporal.feature_reader import FeatureReader
from vtnpipe.temporal.inference import predict_frames, video_frame_logits
from vtnpipe.temporal.model import TemporalClassifier

CONFIG = TemporalConfig(
    feature_dim=12,
    num_classes=3,
    num_layers=2,
    num_heads=2,
    intermediate_dim=24,
    head_dim=12,
    attention_window=4,
    position_embedding="convolution",
    task="frames",
)
MakeStore = Callable[..., FeatureStore]


class Neighbors(nn.Module):
    """A model whose logits depend on two frames to either side."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv1d(12, 3, 5, padding="same")
        self.tokens: list[int] = []

    def forward(self, features: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        self.tokens.append(features.shape[0] * features.shape[1])
        found: Tensor = self.convolution(features.float().transpose(1, 2))
        return found.transpose(1, 2)


def _frames(
    network: nn.Module, store: FeatureStore, ids: list[str], window: int | None, most: int = 10_000
) -> dict[int, Tensor]:
    dataset = ClipDataset(
        FeatureReader(store), ids, torch.zeros(len(ids)), Windows(num_frames=window),
        position_fps=25,
    )  # fmt: skip
    with accelerated("cpu", "float32") as accelerator:
        return dict(predict_frames(network, dataset, accelerator=accelerator, max_tokens=most))


@pytest.mark.parametrize("num_views", [1, 2])
def test_windows_give_the_logits_of_one_pass(make_store: MakeStore, num_views: int) -> None:
    store, network = make_store(num_views=num_views), Neighbors()
    ids = ["v00", "v07", "v23"]
    whole = _frames(network, store, ids, None)
    assert [len(whole[number]) for number in range(3)] == [20, 27, 43]
    # An overlap of six frames; the two outer ones, which see too little, have no weight.
    for most in (18, 40, 10_000):
        found = _frames(network, store, ids, 18, most)
        for number, logits in whole.items():
            torch.testing.assert_close(found[number], logits, rtol=0, atol=1e-4)
    features = torch.from_numpy(np.array(store["v23"].features))
    features = features[:, None] if features.ndim == 2 else features
    inputs, times = features.transpose(0, 1), torch.arange(43)
    for window in (None, 18):
        one = video_frame_logits(network, inputs, times.__getitem__, Windows(num_frames=window))
        torch.testing.assert_close(one, whole[2], rtol=0, atol=1e-4)


def test_a_long_video_needs_the_memory_of_its_windows(make_store: MakeStore) -> None:
    length = 86_400  # three hours at 8 frames/s
    long = VideoPart(
        video_id="long",
        features=np.zeros((length, 12), np.float32),
        frame_index=np.arange(length),
        timestamps=np.arange(length) / 8,
        status="ok",
    )
    store, network = make_store(1, long), Neighbors()
    tracemalloc.start()
    found = _frames(network, store, ["long"], 4096, 16_384)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found[0].shape == (length, 3)
    assert max(network.tokens) <= 16_384
    assert peak < 60e6  # numpy's and Python's; a copy of a pass over all frames would be beyond


@pytest.mark.parametrize("encoder", ["longformer", "full", "uniform", "hf:bert"])
def test_encoders_give_a_state_of_each_frame_that_padding_does_not_change(encoder: str) -> None:
    torch.manual_seed(1)
    model = TemporalClassifier(replace(CONFIG, encoder=encoder)).eval()
    features, positions = torch.randn(2, 9, 12), torch.arange(9).expand(2, -1)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 6:] = False
    with torch.inference_mode():
        logits = model(features, positions, mask)
        alone = model(features[1:, :6], positions[1:, :6])
    assert logits.shape == (2, 9, 3)
    torch.testing.assert_close(logits[1:, :6], alone, rtol=0, atol=1e-5)


def test_the_order_of_frames_matters_to_the_convolution() -> None:
    torch.manual_seed(1)
    model = TemporalClassifier(CONFIG).eval()
    features, positions = torch.randn(1, 9, 12), torch.arange(9)[None]
    with torch.inference_mode():
        ahead = model(features, positions)
        later = model(features, positions + 100)
        back = model(features.flip(1), positions).flip(1)
    torch.testing.assert_close(ahead, later)
    assert float((ahead - back).abs().max()) > 1e-3


@pytest.mark.parametrize("encoder", ["mean", "attentive", "toy_encoders:recurrent"])
def test_encoders_without_states_of_frames_are_refused(encoder: str) -> None:
    with pytest.raises(SettingsError, match=f"--encoder {encoder}: it gives no state"):
        TemporalClassifier(replace(CONFIG, encoder=encoder))
