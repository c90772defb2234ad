"""Planning: the one function that writes plans, and how rows become tasks.

Rows that no plan holds as they are now are probed quickly (`probing.py`), long videos are cut into
parts, and rows are packed into tasks of about equal work. No cluster and no measurement is needed.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console

from ...extract.decode.cuts import PREROLL_IF_CHEAP, PREROLL_IF_DEAR
from ...extract.decode.pool import DecoderPool
from ...extract.decode.protocol import CutRequest
from ...extract.decode.remote import is_url
from ...extract.decode.sampling import Sampling
from ...extract.device import can_compile
from ...manifests.atomic import write_bytes
from ...manifests.errors import FeaturesError, SettingsError, StoppedError, StorageError
from ...manifests.feature_folder import Extraction, FeatureFolder, check_spec, write_extraction
from ...manifests.feature_store import FeatureStore
from ...manifests.manifest import VideoRow, read_manifest, update_manifest
from ...manifests.plan import (
    Computation,
    PlannedRow,
    Task,
    TaskSize,
    pack,
    pending_tasks,
    read_plans,
    rows_to_plan,
    with_current_paths,
    write_plan,
)
from ..console import say
from .failure_limit import FailureLimit
from .feature_spec import NewExtraction
from .probing import ProbedRow, file_properties, file_states, probe_rows
from .settings import ExtractSettings
from .workers import expected_workers

DEFAULT_BATCH_SIZE = {"cpu": 16, "cuda": 128}
# Frames of a task for each decoder process: one to two minutes of ViT-B/16 on one core, half a
# minute on a fast GPU with 16 of them.
TASK_FRAMES = {"cpu": 1024, "cuda": 4096}
MIN_TASK_FRAMES = {"cpu": 64, "cuda": 512}
TASKS_PER_WORKER = 8  # at least, unless tasks become shorter than MIN_TASK_FRAMES
TAIL_TASKS_PER_WORKER = 2  # the frames of this many tasks are divided into eighths at the end
# Lanes: several for each decoder process, but each so long that opening a file and decoding from
# the keyframe before a part cost little.
LANES_PER_PROCESS = 4
MIN_LANE_FRAMES, MAX_LANE_FRAMES = 256, 2048
# From here on compiling, 12 to 15 seconds, pays for a ResNet-50 on an H200: it saves 25 µs a frame.
MIN_COMPILED_FRAMES = 1_000_000  # per worker
# A video engine of an H200 decodes H.264 as fast as 2.9 cores at 720p, as 2.4 at 1080p.
CORES_PER_ENGINE = 2.6
CUT_FROM = 1.5  # size of a video, in tasks, from which on it is cut


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All tasks of a feature folder.

    Attributes:
        tasks: tasks of all plans, oldest plan first.
        store: features stored before.
        rows: rows of the folder's manifest.
    """

    tasks: list[Task]
    store: FeatureStore
    rows: list[VideoRow]

    @property
    def pending(self) -> list[Task]:
        """Tasks without a shard."""
        return pending_tasks(self.tasks, self.store.folder)


def plan_extraction(
    folder: FeatureFolder,
    rows: list[VideoRow],
    settings: ExtractSettings,
    new: NewExtraction,
    pool: DecoderPool,
    console: Console,
    *,
    probed: Sequence[ProbedRow] | None = None,
) -> Plan:
    """Create the folder if it is new, and write a plan for the rows that no plan holds yet.

    Args:
        folder: the feature folder, locked.
        rows: rows of the manifest.
        settings: settings of `extract`.
        new: specification, device and weights.
        pool: probes and cuts videos, from `planning_pool`.
        console: for messages.
        probed: all rows with their quick probes; by default, rows without a plan are probed.

    Raises:
        VtnpipeError: the folder contains something else, a file has changed, or too many files
            cannot be opened.
        StoppedError: with `--finish`, rows are in no plan.
    """
    create_folder(folder, new, settings)
    store, tasks, unplanned = read_state(folder, rows, settings)
    if unplanned and settings.finish:
        raise StoppedError(
            f"{folder.root}: {len(unplanned):,} videos are in no plan yet, "
            f"{unplanned[0].video_id!r} for one; run the parts, or all by leaving out --finish"
        )
    all_rows = update_manifest(rows, folder.manifest)
    if unplanned:
        sampling = Sampling.from_spec(new.extraction.spec)
        if probed is None:
            probed = probe_rows(unplanned, sampling, pool, settings)
        else:
            names = {row.video_id for row in unplanned}
            probed = [one for one in probed if one.row.video_id in names]
        unreadable = [one.error for one in probed if one.error is not None]
        FailureLimit(settings.max_failures, len(rows)).count(
            Counter(error.reason for error in unreadable), str(unreadable[0]) if unreadable else ""
        )
        division = divide_work(probed, settings, new)
        if division.computation.is_compiled and settings.compile == "auto":
            say(console, "compile: the work is long enough to earn the seconds back")
        tasks += write_plan(
            folder,
            divide(probed, sampling, division, pool),
            fingerprint=store.fingerprint,
            computation=division.computation,
            properties=file_properties(probed),
        )
    return Plan(tasks=tasks, store=store, rows=all_rows)


def existing_plan(
    folder: FeatureFolder, rows: list[VideoRow], settings: ExtractSettings
) -> Plan | None:
    """Return the plan if it holds all rows already; None if there is something to plan or note.

    Raises:
        VtnpipeError: the folder contains something else, or a file has changed.
    """
    store, tasks, unplanned = read_state(folder, rows, settings)
    if unplanned or not folder.manifest.exists():
        return None
    noted = read_manifest(folder.manifest)
    if not set(rows) <= set(noted):
        return None  # a label has changed
    return Plan(tasks=tasks, store=store, rows=noted)


def read_state(
    folder: FeatureFolder, rows: list[VideoRow], settings: ExtractSettings
) -> tuple[FeatureStore, list[Task], list[PlannedRow]]:
    """Return the stored features, the tasks of all plans, and the rows that need a task.

    Raises:
        VtnpipeError: a plan is damaged, or a file has changed.
    """
    store = FeatureStore(folder.root)
    tasks = read_plans(folder, store.fingerprint)
    paths = {row.video_id: row.path for row in rows}
    pending = {task.name: with_current_paths(task, paths) for task in pending_tasks(tasks, folder)}
    tasks = [pending.get(task.name, task) for task in tasks]
    if settings.decoder == "decord" and any(
        row.cut for task in pending.values() for row in task.rows
    ):
        raise SettingsError(
            "--decoder decord: the plan cuts long videos into parts, which decord cannot decode "
            "exactly; give --decoder auto, or extract into a new folder"
        )
    unplanned = rows_to_plan(
        rows,
        tasks,
        store.outcomes,
        pending={row.video_id for task in pending.values() for row in task.rows},
        current_plans=store.plans,
        retry=settings.reasons_to_retry,
        redo_changed=settings.redo_changed,
        state_of=file_states(rows, settings),
    )
    return store, tasks, unplanned


def create_folder(folder: FeatureFolder, new: NewExtraction, settings: ExtractSettings) -> None:
    """Create the folder: weights first, then extraction.json.

    Raises:
        SettingsError: its shards would be too large.
        FeaturesError: it cannot be written, or another run has created it with other settings.
    """
    most = max_task_frames(new.extraction)
    if settings.shard_frames != "auto" and int(settings.shard_frames) > most:
        raise SettingsError(
            f"--shard-frames {settings.shard_frames}: features of "
            f"{new.extraction.bytes_per_frame} bytes per frame would make a shard of more than 256 "
            f"MiB; give at most {most}, or auto"
        )
    if folder.extraction.exists():
        check_spec(folder, new.extraction.spec)
    else:
        assert new.weights is not None
        try:
            write_bytes(new.weights, folder.backbone)
            write_extraction(folder, new.extraction)
        except StorageError as error:
            raise FeaturesError(f"{error}; nothing has been extracted yet") from None
    for path in (folder.plans, folder.shards):
        path.mkdir(exist_ok=True)


def max_task_frames(extraction: Extraction) -> int:
    """Return the frames of a task whose shard has at most 256 MiB of features."""
    return max(1, int(extraction.max_shard_frames / CUT_FROM))


@dataclass(frozen=True, kw_only=True)
class Division:
    """Division of the work into tasks and lanes.

    Attributes:
        size: frames of a task.
        computation: how each task is computed.
        may_cut: whether long videos may be cut into parts.
        max_preroll: see `cut_video`.
    """

    size: TaskSize
    computation: Computation
    may_cut: bool = True
    max_preroll: float = PREROLL_IF_CHEAP

    def part_frames(self, num_left: int) -> int:
        """Return the frames of a part of a long video that starts when `num_left` are left."""
        size = self.size.at(num_left)
        return min(size, self.computation.lane_frames or size)


def divide_work(
    probed: Sequence[ProbedRow], settings: ExtractSettings, new: NewExtraction
) -> Division:
    """Return tasks as given, else by device, number of frames, workers and decoder processes."""
    num_frames = sum(one.row.num_frames for one in probed)
    num_workers, num_processes = expected_workers(settings, new.device, num_frames)
    kind = new.device.partition(":")[0]
    if settings.shard_frames != "auto":
        size = TaskSize(int(settings.shard_frames))
    else:
        size = automatic_task_size(
            num_frames,
            kind,
            num_workers=num_workers,
            num_processes=num_processes,
            most=max_task_frames(new.extraction),
        )
    is_compiled = settings.compile == "yes" or (
        settings.compile == "auto"
        and kind == "cuda"
        and num_frames >= MIN_COMPILED_FRAMES * num_workers
        and (can_compile(new.device) or not settings.is_here)
    )
    return Division(
        size=size,
        computation=Computation(
            batch_size=settings.batch_size or DEFAULT_BATCH_SIZE[kind],
            lane_frames=lane_frames(num_frames, size, num_workers, num_processes),
            is_compiled=is_compiled,
            nvdec_share=nvdec_share(settings, new, num_processes),
        ),
        may_cut=settings.may_cut,
        max_preroll=PREROLL_IF_CHEAP if num_processes == 1 else PREROLL_IF_DEAR,
    )


def nvdec_share(settings: ExtractSettings, new: NewExtraction, num_processes: int) -> float:
    """Return the share of the frames with which a GPU's video engines and the cores end together.

    Args:
        settings: settings of `extract`.
        new: device and engines.
        num_processes: decoder processes of each worker.
    """
    if settings.decoder == "nvdec":
        return 1.0
    engines = CORES_PER_ENGINE * new.num_engines
    return round(engines / (engines + num_processes), 3)


def automatic_task_size(
    num_frames: int, device_type: str, *, num_workers: int, num_processes: int, most: int
) -> TaskSize:
    """Return the size of tasks that keep all workers busy; towards the end, eighths of it.

    Args:
        num_frames: number of frames to extract.
        device_type: `cpu` or `cuda`.
        num_workers: workers that share the frames.
        num_processes: decoder processes of each worker.
        most: largest number of frames of a shard.
    """
    most = min(num_processes * TASK_FRAMES[device_type], most)
    if num_workers == 1:
        return TaskSize(most)
    least = min(num_processes * MIN_TASK_FRAMES[device_type], most)
    size = max(least, min(most, num_frames // (TASKS_PER_WORKER * num_workers)))
    return TaskSize(
        num_frames=size,
        num_tail_frames=TAIL_TASKS_PER_WORKER * num_workers * size,
        num_frames_in_tail=max(size // 8, least),
    )


def lane_frames(
    num_frames: int, size: TaskSize, num_workers: int, num_processes: int
) -> int | None:
    """Return the frames of a lane with which all decoder processes are busy to the end.

    Args:
        num_frames: number of frames to extract.
        size: size of the tasks.
        num_workers: workers that share the frames.
        num_processes: decoder processes of each worker; a single one needs no lanes.
    """
    if num_processes == 1:
        return None
    share = num_frames // (LANES_PER_PROCESS * num_workers * num_processes)
    share = max(MIN_LANE_FRAMES, min(MAX_LANE_FRAMES, share))
    return max(1, min(share, size.num_frames // num_processes))


def divide(
    probed: Sequence[ProbedRow],
    sampling: Sampling,
    division: Division,
    pool: DecoderPool,
) -> list[list[PlannedRow]]:
    """Divide rows into tasks: long videos are cut into parts if they may be, short ones packed."""
    if not division.may_cut:
        return pack([one.row for one in probed], division.size)
    return pack(list(_cut_long(probed, sampling, division, pool)), division.size)


def _cut_long(
    probed: Sequence[ProbedRow], sampling: Sampling, division: Division, pool: DecoderPool
) -> Iterator[PlannedRow]:
    """Yield the rows, those that are too long for a task as parts."""
    num_left = sum(one.row.num_frames for one in probed)
    requests: dict[int, CutRequest] = {}
    for index, one in enumerate(probed):
        row = one.row
        if row.num_frames > CUT_FROM * division.size.at(num_left) and not is_url(row.path):
            offsets = _offsets(row.num_frames, num_left, division)
            requests[index] = CutRequest(
                row.path, offsets, sampling, row.start, row.end, division.max_preroll
            )
        num_left -= row.num_frames
    answers = dict(
        zip(requests, (answer for _, answer in pool.ask(list(requests.values()))), strict=True)
    )
    for index, one in enumerate(probed):
        parts = answers.get(index)
        if not isinstance(parts, list) or not parts:  # left whole; an error recurs in its task
            yield one.row
            continue
        for number, part in enumerate(parts):
            yield one.row._replace(
                part=number, num_parts=len(parts), num_frames=part.num_frames, cut=part
            )


def _offsets(num_frames: int, num_left: int, division: Division) -> list[int]:
    """Return where the parts of a video begin, in wanted frames."""
    offsets = [0]
    while num_frames - offsets[-1] > CUT_FROM * division.part_frames(num_left):
        part = division.part_frames(num_left)
        offsets.append(offsets[-1] + part)
        num_left -= part
    return offsets
