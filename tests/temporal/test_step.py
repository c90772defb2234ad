"""A training step: what may be a CUDA graph, and that a graph takes the same steps."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from vtnpipe.manifests.feature_store import FeatureStore
from vtnpipe.manifests.manifest import VideoRow
from vtnpipe.temporal import cuda_graphs
from vtnpipe.temporal.clips import ALL_FRAMES, ClipSampling
from vtnpipe.temporal.config import TemporalConfig
from vtnpipe.temporal.cuda_graphs import CudaGraphs
from vtnpipe.temporal.dataset import ClipDataset, RandomClips, load_batches, training_batches
from vtnpipe.temporal.distributed import accelerated
from vtnpipe.temporal.feature_reader import FeatureReader
from vtnpipe.temporal.model import TemporalClassifier
from vtnpipe.temporal.optim import Recipe
from vtnpipe.temporal.step import NUM_EAGER_STEPS, TrainStep, graph_obstacle

CONFIG = TemporalConfig(
    feature_dim=12,
    num_classes=2,
    num_layers=2,
    num_heads=2,
    intermediate_dim=24,
    head_dim=12,
    dropout=0.0,
    attention_dropout=0.0,
    head_dropout=0.0,
)
CPU = torch.device("cpu")
NUM_EPOCHS = 6
MakeStore = Callable[..., FeatureStore]


class StandIn(CudaGraphs):
    """Graphs that run on the CPU: a replay calls the function on the kept inputs."""

    num_replays = 0

    def _run(self, call: Callable[[], Tensor]) -> Tensor:
        return call()

    def _capture(self, call: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        output = torch.zeros(())

        def replay() -> None:
            self.num_replays += 1
            output.copy_(call())

        return replay, output


def _weights(
    store: FeatureStore,
    rows: list[VideoRow],
    recipe: Recipe,
    sampling: ClipSampling,
    *,
    device: str = "cpu",
    graphs: type[CudaGraphs] | None = None,
    offsets: Tensor | None = None,
) -> tuple[Tensor, list[float], TrainStep]:
    """Train for a few epochs; return the weights, the losses, and the step."""
    targets = torch.arange(len(rows)) % 2
    ids = [row.video_id for row in rows]
    clips = RandomClips(sampling)
    dataset = ClipDataset(FeatureReader(store), ids, targets, clips, position_fps=25)
    torch.manual_seed(3)
    model = TemporalClassifier(CONFIG)
    with accelerated(device, recipe.precision) as accelerator:
        step = TrainStep(model, CONFIG, dataset, recipe, accelerator, lr_scales={}, offsets=offsets)
        if graphs is None:
            step.graphs = None
        else:
            step.use_graphs(graphs)
        step.network.train()
        losses = []
        for epoch in range(NUM_EPOCHS):
            keys = training_batches(dataset.lengths, recipe.batch_size, seed=0, epoch=epoch)
            batches = load_batches(dataset, keys, 0, accelerator.device)
            for number, one in enumerate(keys):
                step.set_lr(recipe.lr_factor(epoch + number / len(keys)))
                losses.append(step(one, batches).loss)
    weights = torch.cat([one.detach().flatten().cpu() for one in model.parameters()])
    return weights, torch.stack(losses).tolist(), step


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("sampling", [ClipSampling(num_frames=8, seconds=2.0), ALL_FRAMES])
def test_steps_as_graphs_equal_eager_steps(
    make_store: MakeStore,
    rows: list[VideoRow],
    optimizer: str,
    sampling: ClipSampling,
) -> None:
    recipe = Recipe(
        epochs=NUM_EPOCHS, batch_size=7, optimizer=optimizer, lr=0.01, schedule="cosine",
        max_grad_norm=0.5, class_weights="balanced",
    )  # fmt: skip
    store, offsets = make_store(), torch.randn(len(rows), 2)
    expected, losses, _ = _weights(store, rows, recipe, sampling, offsets=offsets)
    found, graph_losses, step = _weights(
        store, rows, recipe, sampling, graphs=StandIn, offsets=offsets
    )
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)
    assert graph_losses == pytest.approx(losses, rel=1e-3)
    # Batches of seven and of the remaining clips have graphs of their own.
    assert isinstance(step.graphs, StandIn)
    if sampling.num_frames is not None:
        assert step.graphs.num_replays == len(losses) - NUM_EAGER_STEPS * 2
    assert step.graphs.num_replays > 0


@pytest.mark.cuda
@pytest.mark.skipif(
    not torch.cuda.is_available() and not os.environ.get("VTNPIPE_REQUIRE_CUDA"), reason="no GPU"
)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("sampling", [ClipSampling(num_frames=8, seconds=2.0), ALL_FRAMES])
def test_cuda_graphs_take_the_steps_of_the_cpu(
    make_store: MakeStore, rows: list[VideoRow], optimizer: str, sampling: ClipSampling
) -> None:
    recipe = Recipe(
        epochs=NUM_EPOCHS, batch_size=7, optimizer=optimizer, lr=0.01, schedule="cosine",
        max_grad_norm=0.5,
    )  # fmt: skip
    store = make_store()
    expected, losses, _ = _weights(store, rows, recipe, sampling)
    found, graph_losses, step = _weights(
        store, rows, recipe, sampling, device="cuda", graphs=CudaGraphs
    )
    assert step.graphs is not None
    assert step.graphs.fault is None
    assert graph_losses == pytest.approx(losses, rel=1e-2)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)


def test_a_checkpoint_of_the_cpu_continues_on_another_device(
    make_store: MakeStore, rows: list[VideoRow], tmp_path: Path
) -> None:
    recipe = Recipe(epochs=NUM_EPOCHS, batch_size=7, optimizer="adamw")
    sampling = ClipSampling(num_frames=8, seconds=2.0)
    store = make_store()
    _, _, eager = _weights(store, rows, recipe, sampling)
    _, _, graphed = _weights(store, rows, recipe, sampling, graphs=StandIn)
    for one, other in ((eager, graphed), (graphed, eager)):
        torch.save(one.optimizer.state_dict(), tmp_path / "state.pt")
        kind = type(other.optimizer.param_groups[0]["lr"])
        other.load_optimizer(torch.load(tmp_path / "state.pt", weights_only=True))
        other.set_lr(0.5)
        (lr, *_) = [group["lr"] for group in other.optimizer.param_groups]
        assert type(lr) is kind
        assert float(lr) == pytest.approx(0.5 * recipe.lr)


def test_graphs_run_eagerly_where_a_shape_is_new_or_nothing_can_be_captured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda_graphs, "MAX_GRAPHS", 2)
    calls: list[list[float]] = []

    def total(values: Tensor) -> Tensor:
        calls.append(values.tolist())
        return values.sum()

    graphs = StandIn(total, CPU, num_eager=1)
    found = [float(graphs(torch.full((n,), 2.0))) for n in (1, 1, 1, 2, 2, 3, 3)]
    assert found == [2, 2, 2, 4, 4, 6, 6]
    assert graphs.num_replays == 3  # twice for one element, once for two; none for the third shape

    class Failing(StandIn):
        def _capture(self, call: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
            raise RuntimeError("operation not permitted when stream is capturing")

    graphs = Failing(total, CPU, num_eager=0)
    with pytest.warns(UserWarning, match="no CUDA graph can be captured.*not permitted"):
        assert float(graphs(torch.ones(3))) == 3
    assert float(graphs(torch.ones(3))) == 3
    assert graphs.fault is not None


@pytest.mark.parametrize(
    ("config", "recipe", "reason"),
    [
        ({}, {}, None),
        ({"encoder": "mean"}, {}, None),
        ({"encoder": "toy_encoders:recurrent"}, {}, "--encoder toy_encoders:recurrent"),
        ({}, {"gradient_accumulation": 2}, "--gradient-accumulation"),
        ({}, {"precision": "float16"}, "--precision float16"),
    ],
)
def test_reasons_against_a_graph(
    config: dict[str, str], recipe: dict[str, object], reason: str | None
) -> None:
    with accelerated("cpu", "float32") as accelerator:
        model = TemporalClassifier(replace(CONFIG, **config))  # type: ignore[arg-type]
        assert graph_obstacle(model, Recipe(**recipe), accelerator) == reason  # type: ignore[arg-type]


def test_more_reasons_against_a_graph() -> None:
    model = TemporalClassifier(CONFIG)
    model.use_gradient_checkpointing()
    with accelerated("cpu", "float32") as accelerator:
        assert graph_obstacle(model, Recipe(), accelerator) == "--gradient-checkpointing"
        assert graph_obstacle(nn.Linear(1, 1), Recipe(), accelerator) is not None
