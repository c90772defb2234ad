"""Readers of data sets' annotation files, and the search for each clip's video file.

Each `read_...` yields the clips of one data set as its authors publish them, without opening any
video; `VideoFinder` finds the files, whatever their extension.
"""

import csv
import json
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from .errors import ManifestError
from .image_sequences import IMAGE_EXTENSIONS
from .manifest import VideoRow, nfc

# File names that count as videos; the content is checked when a file is opened.
EXTENSIONS = frozenset(
    ".3g2 .3gp .asf .avi .flv .gif .h264 .264 .h265 .265 .ivf "
    ".m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts "
    ".mxf .ogg .ogv .rm .rmvb .ts .vob .webm .wmv .y4m".split()
)
VALIDATION_SHARE = 0.1  # of the training clips of a data set without a validation split
# Hidden folders, and those that desktops, archives and NAS systems make for trash, thumbnails and
# snapshots.
_SYSTEM_FOLDERS = re.compile(
    r"\..*|@eaDir|@tmp|@Recycle|@Recently-Snapshot|@__thumb|#recycle|#snapshot|__MACOSX|"
    r"\$RECYCLE\.BIN|RECYCLER|System Volume Information|lost\+found|FOUND\.\d+",
    re.IGNORECASE,
)
SPLIT_WORDS = {"train": "train", "val": "val", "test": "test"}  # first letters of a word → split


@dataclass(frozen=True, kw_only=True)
class AnnotatedClip:
    """One clip of an annotation file.

    Attributes:
        video_id: id, unique in its data set.
        names: possible names of its file, the likeliest first: a path below the videos' folder or a
            bare name; the extension may differ.
        label: class name; empty if not published.
        split: train, val or test; empty if the file does not say.
        span: start and end in seconds, in a file of the whole video.
        cut_names: possible names of a file that holds only the span.
    """

    video_id: str
    names: tuple[str, ...]
    label: str = ""
    split: str = ""
    span: tuple[float, float] | None = None
    cut_names: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether the span has no length, as some in ActivityNet."""
        return self.span is not None and self.span[1] <= self.span[0]


class VideosBelow(NamedTuple):
    """Files with video names below a folder.

    Attributes:
        videos: the videos, and folders of images alone, sorted.
        dangling: symbolic links that lead to no file, sorted.
        num_left_out: number of files that are hidden, or in a folder that a system made.
    """

    videos: list[Path]
    dangling: list[Path]
    num_left_out: int


def videos_below(folder: Path) -> VideosBelow:
    """Find the files with video names below a folder, and folders that hold images alone.

    Symbolic links are followed.

    Raises:
        ManifestError: a folder cannot be read.
    """
    videos, dangling, num_left_out = [], [], 0
    left_out: set[Path] = set()
    try:
        for root, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
            here = Path(root)
            above = {here.resolve(), *here.resolve().parents}
            folders[:] = [one for one in folders if (here / one).resolve() not in above]
            is_left_out = here in left_out
            left_out |= {
                here / one for one in folders if is_left_out or _SYSTEM_FOLDERS.fullmatch(one)
            }
            extensions = {Path(name).suffix.lower() for name in names}
            is_sequence = bool(extensions & {*IMAGE_EXTENSIONS}) and not extensions & EXTENSIONS
            if is_sequence and not (folders or is_left_out or here == folder):
                videos.append(here)
            for name in names:
                path = here / name
                if path.suffix.lower() not in EXTENSIONS:
                    continue
                if is_left_out or name.startswith("."):
                    num_left_out += 1
                elif path.is_file():
                    videos.append(path)
                elif path.is_symlink():
                    dangling.append(path)
    except OSError as error:
        raise ManifestError(
            f"cannot read {error.filename} ({error.strerror}); fix its mode, or leave it out"
        ) from None
    return VideosBelow(sorted(videos), sorted(dangling), num_left_out)


def _raise(error: OSError) -> None:
    raise error


class VideoFinder:
    """Finds videos below a folder by path or bare name, without their extensions.

    Names compare in Unicode's normal form NFC: macOS writes an é as two characters.
    """

    def __init__(self, folder: Path) -> None:
        """List the folder.

        Raises:
            ManifestError: it is missing, or contains no videos.
        """
        if not folder.is_dir():
            raise ManifestError(f"--videos {folder}: no such folder; give the one with the videos")
        self._by_path: dict[str, Path] = {}
        self._by_name: dict[str, Path | None] = {}  # None if several files have the name
        for path in videos_below(folder).videos:
            self._by_path[nfc(path.relative_to(folder).with_suffix("").as_posix())] = path
            name = nfc(path.stem)
            self._by_name[name] = None if name in self._by_name else path
        self._folder = folder
        if not self._by_path:
            raise ManifestError(f"--videos {folder}: holds no videos; give the folder that does")

    def find(self, name: str) -> Path | None:
        """Return the file at a path, or the only file of a bare name; None if there is none."""
        if Path(name).is_absolute():
            return Path(name) if Path(name).is_file() else None
        suffix = Path(name).suffix.lower()
        bare = nfc(name[: -len(suffix)] if suffix in EXTENSIONS else name).removeprefix("./")
        found = self._by_path.get(bare)
        return found or (None if "/" in bare else self._by_name.get(bare))

    def is_folder(self, name: str) -> bool:
        """Return whether there is a folder at a path, as of a video's frames."""
        return (self._folder / name).is_dir()

    def row(self, clip: AnnotatedClip) -> VideoRow | None:
        """Return the manifest row of a clip; None if its file is missing."""
        for names, span in ((clip.cut_names, None), (clip.names, clip.span)):
            for name in names:
                if (path := self.find(name)) is not None:
                    start, end = span or (None, None)
                    return VideoRow(
                        video_id=nfc(clip.video_id),
                        path=str(path.absolute()),
                        label=nfc(clip.label),
                        split=clip.split,
                        start=start,
                        end=end,
                    )
        return None


def split_named(text: str) -> str:
    """Return the split that a word or file name mentions; empty for none or several.

    >>> [split_named(text) for text in ("validate", "kinetics400_train_list", "testing", "list1")]
    ['val', 'train', 'test', '']
    """
    words = re.split(r"[^a-z]+", text.lower())
    found = {s for w, s in SPLIT_WORDS.items() if any(word.startswith(w) for word in words)}
    return found.pop() if len(found) == 1 else ""


def read_kinetics(path: Path) -> Iterator[AnnotatedClip]:
    """Read Kinetics' CSV: `label,youtube_id,time_start,time_end,split`; label may be absent.

    Files are named YOUTUBE_ID_SSSSSS_EEEEEE (six digits each), in any folders; or by the YouTube id
    alone if they hold the whole video.
    """
    with open_text(path) as file:
        reader = csv.DictReader(file)
        needed = ("youtube_id", "time_start", "time_end")
        if missing := [name for name in needed if name not in (reader.fieldnames or ())]:
            raise ManifestError(
                f"{path}:1: no column {missing[0]!r}; give Kinetics' label,youtube_id,time_start,"
                "time_end,split, or another --format"
            )
        for fields in reader:
            where = f"{path}:{reader.line_num}"
            start, end = (seconds_of(fields[name], where) for name in needed[1:])
            name = fields["youtube_id"]
            padded = f"{name}_{start:06.0f}_{end:06.0f}"
            yield AnnotatedClip(
                video_id=padded,
                names=(name,),
                label=fields.get("label") or "",
                split=split_named(fields.get("split") or "") or split_named(path.stem),
                span=(max(0.0, start), end),
                cut_names=(padded, f"{name}_{start:.0f}_{end:.0f}"),
            )


def read_ucf101(folder: Path, fold: int) -> Iterator[AnnotatedClip]:
    """Read UCF101's `trainlist01.txt` (path and class number) and `testlist01.txt` (path).

    At least a tenth of each class's training clips, in whole recordings (`_g08_`), becomes the
    split val.
    """
    yield from _with_validation(_ucf101_clips(folder, fold), r"_(g\d+)_c\d+")


def _with_validation(clips: Iterable[AnnotatedClip], recording: str) -> Iterator[AnnotatedClip]:
    """Move whole recordings of each class from train to val, with a tenth of its clips at least.

    Args:
        clips: clips of the splits train and test.
        recording: regular expression for the part of an id that names the recording.
    """
    clips = list(clips)
    by_class: dict[str, dict[str, list[str]]] = {}
    for clip in clips:
        match = re.search(recording, clip.video_id)
        if clip.split == "train" and match is not None:
            found = by_class.setdefault(clip.label, {})
            found.setdefault(match[1], []).append(clip.video_id)
    chosen: set[str] = set()
    for recordings in by_class.values():
        wanted = VALIDATION_SHARE * sum(map(len, recordings.values()))
        num_chosen = 0
        # In an arbitrary order that is always the same; one recording stays for training.
        for name in sorted(recordings, key=lambda name: zlib.crc32(name.encode()))[:-1]:
            if num_chosen >= wanted:
                break
            chosen.update(recordings[name])
            num_chosen += len(recordings[name])
    for clip in clips:
        yield replace(clip, split="val") if clip.video_id in chosen else clip


def _ucf101_clips(folder: Path, fold: int) -> Iterator[AnnotatedClip]:
    for split in ("train", "test"):
        path = folder / f"{split}list{fold:02}.txt"
        for number, line in text_lines(path):
            name = line.rsplit(" ", 1)[0] if line[-1].isdigit() else line
            label, _, rest = name.partition("/")
            if not rest:
                raise ManifestError(
                    f"{path}:{number}: {line!r} is not CLASS/VIDEO.avi; correct the line"
                )
            yield AnnotatedClip(video_id=name, names=(name, rest), label=label, split=split)


def read_hmdb51(folder: Path, fold: int) -> Iterator[AnnotatedClip]:
    """Read HMDB51's `CLASS_test_splitN.txt`: a file and 1 (train), 2 (test) or 0 (unused).

    At least a tenth of each class's training clips, in whole recordings (what precedes the class
    in a file's name), becomes the split val.
    """
    yield from _with_validation(_hmdb51_clips(folder, fold), r"^(([^/]+)/.+?)_\2_")


def _hmdb51_clips(folder: Path, fold: int) -> Iterator[AnnotatedClip]:
    ending = f"_test_split{fold}.txt"
    paths = sorted(folder.glob(f"*{ending}"))
    if not paths:
        raise ManifestError(f"{folder}: no CLASS{ending}; give HMDB51's folder of splits")
    for path in paths:
        label = path.name.removesuffix(ending)
        for number, line in text_lines(path):
            name, _, use = line.rpartition(" ")
            if use not in ("0", "1", "2"):
                raise ManifestError(
                    f"{path}:{number}: {line!r} does not end in 0, 1 or 2; correct it"
                )
            if use != "0":
                split = "train" if use == "1" else "test"
                path_name = f"{label}/{name}"
                yield AnnotatedClip(
                    video_id=path_name, names=(path_name, name), label=label, split=split
                )


def read_something_something(path: Path) -> Iterator[AnnotatedClip]:
    """Read Something-Something v2's JSON: a list of `id` and, but for the test split, `template`.

    The class is the template without its brackets; files are named by id.
    """
    for entry in read_json_of(path, list):
        try:
            name = str(entry["id"])
            label = str(entry.get("template", "")).replace("[", "").replace("]", "")
        except (TypeError, KeyError, AttributeError):
            raise ManifestError(
                f"{path}: an entry has no id ({str(entry)[:80]}); give the list of videos, "
                "not of labels"
            ) from None
        yield AnnotatedClip(video_id=name, names=(name,), label=label, split=split_named(path.stem))


def read_activitynet(path: Path) -> Iterator[AnnotatedClip]:
    """Read ActivityNet's JSON: `database` → YouTube id → `subset`, `annotations` with `segment`.

    Each segment is a clip of the whole video, which is named v_ID or ID. A video without
    annotations is one clip without a label.
    """
    database = read_json_of(path, dict).get("database")
    if not isinstance(database, dict):
        raise ManifestError(f"{path}: no 'database'; give ActivityNet's JSON")
    for name, video in database.items():
        files = (f"v_{name}", name)
        try:
            split = split_named(video["subset"])
            annotations = []
            for one in video.get("annotations", ()):
                start, end = (seconds_of(s, f"{path}: {name!r}") for s in one["segment"])
                annotations.append((one["label"], start, end))
        except ManifestError:
            raise
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ManifestError(
                f"{path}: {name!r} is not an ActivityNet entry ({error!r}); correct or remove it"
            ) from None
        if not annotations:
            yield AnnotatedClip(video_id=name, names=files, split=split)
        for number, (label, start, end) in enumerate(annotations):
            yield AnnotatedClip(
                video_id=f"{name}/{number}",
                names=files,
                label=label,
                split=split,
                span=(max(0.0, start), end),
            )


def read_list(
    path: Path, class_names: Sequence[str] = (), *, is_multi_label: bool = False
) -> Iterator[AnnotatedClip]:
    """Read lines of a path and a class number, as PySlowFast and MMAction use them.

    Separators are spaces, commas or tabs; a path may hold them, too, and may be quoted.

    Args:
        path: the list.
        class_names: names by number; without them, labels are the numbers, padded with zeros.
        is_multi_label: whether all numbers at the end of a line are labels, not the last alone.
    """
    lines = []
    pattern = r"(.*?\S)((?:[\s,]+\d+)+)" if is_multi_label else r"(.*\S)([\s,]+\d+)"
    for number, line in text_lines(path):
        match = re.fullmatch(pattern, line)
        if match is None:
            raise ManifestError(
                f"{path}:{number}: {line!r} is not a path and a class number; correct the line"
            )
        name = match[1].rstrip(", \t")
        if len(name) > 1 and name[0] == name[-1] == '"':
            name = name[1:-1].replace('""', '"')
        lines.append((number, name, [int(n) for n in re.findall(r"\d+", match[2])]))
    width = max((len(str(n)) for _, _, found in lines for n in found), default=1)
    for number, name, found in lines:
        if class_names and max(found) >= len(class_names):
            raise ManifestError(
                f"{path}:{number}: class {max(found)}, but --classes names {len(class_names)}, "
                "from 0 on; name all of them"
            )
        labels = [class_names[n] if class_names else f"{n:0{width}}" for n in found]
        yield AnnotatedClip(
            video_id=name, names=(name,), label="|".join(labels), split=split_named(path.stem)
        )


def read_class_names(path: Path) -> list[str]:
    """Read class names by number: one per line, or JSON of name → number, or a JSON list.

    Raises:
        ManifestError: the file cannot be read, or a number is missing.
    """
    if path.suffix.lower() != ".json":
        return [line for _, line in text_lines(path)]
    value = read_json_of(path, (list, dict))
    if isinstance(value, list):
        return [str(name) for name in value]
    try:
        names = {int(number): str(name) for name, number in value.items()}
        return [names[number] for number in range(len(value))]
    except (TypeError, ValueError, KeyError):
        raise ManifestError(
            f"{path}: its values must be 0, 1, 2, ..., each once; correct them"
        ) from None


@contextmanager
def open_text(path: Path) -> Iterator[Any]:
    """Yield an open UTF-8 text file.

    Raises:
        ManifestError: the file cannot be read, is not UTF-8, or is not CSV if read as such.
    """
    try:
        file = path.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise ManifestError(
            f"cannot read {path} ({error.strerror}); check its path and mode"
        ) from None
    with file:
        try:
            yield file
        except UnicodeDecodeError as error:
            raise ManifestError(f"{path}: not UTF-8 ({error.reason}); save it as UTF-8") from None
        except csv.Error as error:
            raise ManifestError(f"{path}: not CSV ({error}); correct it") from None


def text_lines(path: Path, *, keep_tabs: bool = False) -> Iterator[tuple[int, str]]:
    """Yield (line number, text) of each line that is not blank, without spaces at its ends.

    Args:
        path: path of the file.
        keep_tabs: keep tabs at the ends, which separate empty fields.
    """
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line.strip("\r\n" if keep_tabs else None)


def read_json_of(path: Path, kind: type | tuple[type, ...]) -> Any:
    """Return the value of a JSON file, which must be of a kind.

    Raises:
        ManifestError: the file cannot be read, or holds something else.
    """
    with open_text(path) as file:
        try:
            value = json.load(file)
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{path}: not JSON ({error}); copy it again") from None
    if not isinstance(value, kind):
        raise ManifestError(
            f"{path}: contains a {type(value).__name__}, which this format does not; give another "
            "file or --format"
        )
    return value


def seconds_of(text: Any, where: str) -> float:
    """Return a time in seconds.

    Raises:
        ManifestError: it is not a number.
    """
    try:
        number = float(text)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ManifestError(f"{where}: {text!r} is not a time in seconds; correct or remove it")
    return number
