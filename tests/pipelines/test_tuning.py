"""Choices and their reasons: batch size, memory format, children; sizes of tasks."""

import pytest
from vtnpipe.extract.backbone import Kinds
from vtnpipe.manifests.plan import Speed
from vtnpipe.pipelines.extraction.planning import CUT_FROM, MAX_SHARD_BYTES, task_size
from vtnpipe.pipelines.extraction.tuning import Measure, choose_children, choose_speed

NEITHER = Kinds(1, 0)


def _measure(rates: dict[Speed, float], kinds: Kinds = NEITHER) -> tuple[Measure, list[Speed]]:
    tried: list[Speed] = []

    def measure(speed: Speed) -> tuple[float, Kinds]:
        tried.append(speed)
        return rates[speed], kinds

    return measure, tried


def test_the_smallest_batch_that_is_about_as_fast_is_taken() -> None:
    rates = {Speed(8): 40.0, Speed(16): 50.0, Speed(32): 51.0}
    measure, tried = _measure(rates)
    choice = choose_speed(measure, (8, 16, 32), is_cpu=True)
    assert choice.speed == Speed(16)
    assert choice.fps == 50.0
    assert choice.reasons == ["batch size 16: 50.0 frames/s a worker (40.0 with 8, 51.0 with 32)"]
    assert tried == list(rates)


def test_a_slow_backbone_is_not_measured_for_long() -> None:
    measure, tried = _measure({Speed(8): 4.0})
    assert choose_speed(measure, (8, 16, 32), is_cpu=True).speed == Speed(8)
    assert tried == [Speed(8)]


def test_a_batch_without_memory_is_not_taken() -> None:
    measure, _ = _measure({Speed(32): 900.0, Speed(64): 1500.0, Speed(128): 0.0})
    assert choose_speed(measure, (32, 64, 128, 256), is_cpu=True).speed == Speed(64)


@pytest.mark.parametrize(("last", "pays"), [(60.0, True), (50.5, False), (30.0, False)])
def test_channels_last_where_it_pays(last: float, pays: bool) -> None:
    measure, _ = _measure({Speed(8): 50.0, Speed(8, channels_last=True): last}, Kinds(50, 0))
    choice = choose_speed(measure, (8,), is_cpu=True)
    assert choice.speed.channels_last == pays
    assert choice.fps == (last if pays else 50.0)
    assert f"{last:,.1f} frames/s channels last, 50.0 channels first" in choice.reasons[1]


def test_attention_without_the_fused_kernel_where_it_pays() -> None:
    both = Speed(8, channels_last=True, fused_attention=False)
    rates = {Speed(8): 50.0, Speed(8, channels_last=True): 60.0, both: 70.0}
    measure, tried = _measure(rates, Kinds(50, 12))
    assert choose_speed(measure, (8,), is_cpu=True).speed == both
    assert tried == list(rates)
    assert choose_speed(measure, (8,), is_cpu=False).speed == Speed(8, channels_last=True)


@pytest.mark.parametrize(
    ("forward", "decode", "options", "number"),
    [
        (15.0, 2000.0, {"num_cpus": 1, "is_cpu": True}, 1),
        (3000.0, 1500.0, {"num_cpus": 16, "is_cpu": False}, 3),
        (3000.0, 100.0, {"num_cpus": 16, "is_cpu": False}, 8),
        (3000.0, 100.0, {"num_cpus": 2, "is_cpu": False}, 1),
        (3000.0, None, {"num_cpus": 6, "is_cpu": False}, 5),
        (15.0, None, {"num_cpus": 64, "is_cpu": True}, 1),
    ],
)
def test_as_many_children_as_keep_the_backbone_busy(
    forward: float, decode: float | None, options: dict[str, int], number: int
) -> None:
    found, reason = choose_children(forward, decode, **options)
    assert found == number
    assert reason.startswith(f"decoding children a worker: {number}; ")


def test_tasks_are_of_minutes_and_bounded_in_bytes() -> None:
    options = {"frames_per_second": 30.0, "bytes_per_frame": 1536, "num_workers": 2}
    assert task_size(10**6, **options).num_frames == 90 * 30  # type: ignore[arg-type]
    assert task_size(4800, **options).num_frames == 300  # type: ignore[arg-type]
    assert task_size(10, **options).num_frames == 60  # type: ignore[arg-type]
    size = task_size(10**9, frames_per_second=10_000.0, bytes_per_frame=1536, num_workers=8)
    assert size.num_frames * 1536 * CUT_FROM <= MAX_SHARD_BYTES
    assert size.num_frames_in_tail == 2 * 10_000  # two seconds
    assert size.num_tail_frames == pytest.approx(16 * size.num_frames, abs=16)
    size = task_size(10**9, frames_per_second=1_000.0, bytes_per_frame=1536, num_workers=8)
    assert size.num_frames_in_tail == 90 * 1_000 // 8
