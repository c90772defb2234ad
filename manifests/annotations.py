"""Data sets' own annotation files, read into clips; and the search for each clip's file.

Each `read_...` yields the clips of one data set as its authors publish them, without a look at the
videos; `VideoIndex` finds the files, whatever their extension.
"""

import csv
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ManifestError
from .manifest import VideoRow

# What counts as a video by name; what a file really is shows when it is opened.
EXTENSIONS = frozenset(
    ".3g2 .3gp .asf .avi .flv .gif .h264 .264 .h265 .265 .ivf "
    ".m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts "
    ".mxf .ogg .ogv .rm .rmvb .ts .vob .webm .wmv .y4m".split()
)
SPLIT_WORDS = {"train": "train", "val": "val", "test": "test"}  # beginning of a word → split


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One clip of an annotation file.

    Attributes:
        video_id: unique in its data set.
        names: of its file, the likeliest first: a path below the videos' folder, or a bare name;
            the extension may be another one.
        label: empty where it is not published.
        split: train, val or test; empty where the file does not say.
        span: start and end in seconds, in a file that holds the whole video.
        cut_names: names that a file has which holds the span alone.
    """

    video_id: str
    names: tuple[str, ...]
    label: str = ""
    split: str = ""
    span: tuple[float, float] | None = None
    cut_names: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether its span ends where it begins, as some in ActivityNet do."""
        return self.span is not None and self.span[1] <= self.span[0]


def videos_below(folder: Path) -> list[Path]:
    """The files below a folder that videos' names have, in order; folders that are symbolic links
    are gone into, but for those that lead back.

    Raises:
        ManifestError: a folder can't be read.
    """
    found = []
    try:
        for root, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
            here = Path(root)
            above = {here.resolve(), *here.resolve().parents}
            folders[:] = [one for one in folders if (here / one).resolve() not in above]
            found += [here / name for name in names]
    except OSError as error:
        raise ManifestError(
            f"{error.filename}: can't be read ({error.strerror}); mend that, or leave it out"
        ) from None
    return [path for path in sorted(found) if path.suffix.lower() in EXTENSIONS and path.is_file()]


def _raise(error: OSError) -> None:
    raise error


class VideoIndex:
    """All videos below a folder, by path and by bare name, without their extensions."""

    def __init__(self, folder: Path) -> None:
        """Lists the folder.

        Raises:
            ManifestError: it is missing, or holds no videos.
        """
        if not folder.is_dir():
            raise ManifestError(f"--videos {folder}: no such folder; give the one with the videos")
        self._by_path: dict[str, Path] = {}
        self._by_name: dict[str, Path | None] = {}  # None where several have it
        for path in videos_below(folder):
            self._by_path[path.relative_to(folder).with_suffix("").as_posix()] = path
            self._by_name[path.stem] = None if path.stem in self._by_name else path
        if not self._by_path:
            raise ManifestError(f"--videos {folder}: holds no videos; give the folder that does")

    def find(self, name: str) -> Path | None:
        """The file of that path; or, where no folder is named, the only one of that name."""
        if Path(name).is_absolute():
            return Path(name) if Path(name).is_file() else None
        suffix = Path(name).suffix.lower()
        bare = (name[: -len(suffix)] if suffix in EXTENSIONS else name).removeprefix("./")
        found = self._by_path.get(bare)
        return found or (None if "/" in bare else self._by_name.get(bare))

    def row(self, clip: Clip) -> VideoRow | None:
        """The manifest's row of a clip; None where its file is missing."""
        for names, span in ((clip.cut_names, None), (clip.names, clip.span)):
            for name in names:
                if (path := self.find(name)) is not None:
                    start, end = span or (None, None)
                    return VideoRow(
                        video_id=clip.video_id,
                        path=str(path.absolute()),
                        label=clip.label,
                        split=clip.split,
                        start=start,
                        end=end,
                    )
        return None


def split_named(text: str) -> str:
    """The split that a word or file name speaks of; empty where it speaks of none or of several.

    >>> [split_named(text) for text in ("validate", "kinetics400_train_list", "testing", "list1")]
    ['val', 'train', 'test', '']
    """
    words = re.split(r"[^a-z]+", text.lower())
    found = {s for w, s in SPLIT_WORDS.items() if any(word.startswith(w) for word in words)}
    return found.pop() if len(found) == 1 else ""


def read_kinetics(path: Path) -> Iterator[Clip]:
    """Kinetics-400, -600, -700: `label,youtube_id,time_start,time_end,split`; label may lack.

    Files are named YOUTUBE_ID_SSSSSS_EEEEEE (six digits each), in folders of any names; or by the
    YouTube id alone, and then hold the whole video.
    """
    with _open(path) as file:
        reader = csv.DictReader(file)
        needed = ("youtube_id", "time_start", "time_end")
        if missing := [name for name in needed if name not in (reader.fieldnames or ())]:
            raise ManifestError(
                f"{path}:1: no column {missing[0]!r}; give Kinetics' label,youtube_id,time_start,"
                "time_end,split, or another --format"
            )
        for fields in reader:
            where = f"{path}:{reader.line_num}"
            start, end = (_number(fields[name], where) for name in needed[1:])
            name = fields["youtube_id"]
            padded = f"{name}_{start:06.0f}_{end:06.0f}"
            yield Clip(
                video_id=padded,
                names=(name,),
                label=fields.get("label") or "",
                split=split_named(fields.get("split") or "") or split_named(path.stem),
                span=(max(0.0, start), end),
                cut_names=(padded, f"{name}_{start:.0f}_{end:.0f}"),
            )


def read_ucf101(folder: Path, fold: int) -> Iterator[Clip]:
    """UCF101's `trainlist01.txt` (path and class number) and `testlist01.txt` (path)."""
    for split in ("train", "test"):
        path = folder / f"{split}list{fold:02}.txt"
        for number, line in _lines(path):
            name = line.rsplit(" ", 1)[0] if line[-1].isdigit() else line
            label, _, rest = name.partition("/")
            if not rest:
                raise ManifestError(
                    f"{path}:{number}: {line!r} is not CLASS/VIDEO.avi; mend the line"
                )
            yield Clip(video_id=name, names=(name, rest), label=label, split=split)


def read_hmdb51(folder: Path, fold: int) -> Iterator[Clip]:
    """HMDB51's `CLASS_test_splitN.txt`: a file and 1 (train), 2 (test) or 0 (not used)."""
    ending = f"_test_split{fold}.txt"
    paths = sorted(folder.glob(f"*{ending}"))
    if not paths:
        raise ManifestError(f"{folder}: no CLASS{ending}; give HMDB51's folder of splits")
    for path in paths:
        label = path.name.removesuffix(ending)
        for number, line in _lines(path):
            name, _, use = line.rpartition(" ")
            if use not in ("0", "1", "2"):
                raise ManifestError(f"{path}:{number}: {line!r} does not end in 0, 1 or 2; mend it")
            if use != "0":
                split = "train" if use == "1" else "test"
                path_name = f"{label}/{name}"
                yield Clip(video_id=path_name, names=(path_name, name), label=label, split=split)


def read_something_something(path: Path) -> Iterator[Clip]:
    """Something-Something v2's JSON: a list of `id` and, but for the test split, `template`.

    The class is the template without its brackets; files are named by the id.
    """
    for entry in _json(path, list):
        try:
            name = str(entry["id"])
            label = str(entry.get("template", "")).replace("[", "").replace("]", "")
        except (TypeError, KeyError, AttributeError):
            raise ManifestError(
                f"{path}: an entry has no id ({str(entry)[:80]}); give the list of videos, "
                "not of labels"
            ) from None
        yield Clip(video_id=name, names=(name,), label=label, split=split_named(path.stem))


def read_activitynet(path: Path) -> Iterator[Clip]:
    """ActivityNet's JSON: `database` → YouTube id → `subset` and `annotations` with a `segment`.

    Each segment is a clip of the whole video, which is named v_ID or ID. A video without
    annotations is one clip without a label.
    """
    database = _json(path, dict).get("database")
    if not isinstance(database, dict):
        raise ManifestError(f"{path}: no 'database'; give ActivityNet's JSON")
    for name, video in database.items():
        files = (f"v_{name}", name)
        try:
            split = split_named(video["subset"])
            annotations = []
            for one in video.get("annotations", ()):
                start, end = (_number(s, f"{path}: {name!r}") for s in one["segment"])
                annotations.append((one["label"], start, end))
        except ManifestError:
            raise
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ManifestError(
                f"{path}: {name!r} is not as ActivityNet's are ({error!r}); mend or remove it"
            ) from None
        if not annotations:
            yield Clip(video_id=name, names=files, split=split)
        for number, (label, start, end) in enumerate(annotations):
            yield Clip(
                video_id=f"{name}/{number}",
                names=files,
                label=label,
                split=split,
                span=(max(0.0, start), end),
            )


def read_list(path: Path, class_names: Sequence[str] = ()) -> Iterator[Clip]:
    """Lines of a path and a class number, as PySlowFast and MMAction have; of several for
    multi-label. Space, comma or tabulator may stand between.

    Args:
        path: the list.
        class_names: by number; without them, labels are the numbers, with zeros in front so that
            their order stays.
    """
    lines = []
    for number, line in _lines(path):
        match = re.fullmatch(r"(.*?\S)((?:[\s,]+\d+)+)", line)
        if match is None:
            raise ManifestError(
                f"{path}:{number}: {line!r} is not a path and a class number; mend the line"
            )
        lines.append((number, match[1], [int(n) for n in re.findall(r"\d+", match[2])]))
    width = max((len(str(n)) for _, _, found in lines for n in found), default=1)
    for number, name, found in lines:
        if class_names and max(found) >= len(class_names):
            raise ManifestError(
                f"{path}:{number}: class {max(found)}, but --classes names {len(class_names)}, "
                "from 0 on; name all of them"
            )
        labels = [class_names[n] if class_names else f"{n:0{width}}" for n in found]
        yield Clip(
            video_id=name, names=(name,), label="|".join(labels), split=split_named(path.stem)
        )


def read_class_names(path: Path) -> list[str]:
    """Names of classes by number: a line each, or JSON of name → number or a list of names.

    Raises:
        ManifestError: the file can't be read, or a number is missing.
    """
    if path.suffix.lower() != ".json":
        return [line for _, line in _lines(path)]
    value = _json(path, (list, dict))
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
def _open(path: Path) -> Iterator[Any]:
    """A context in which a text file is read.

    Raises:
        ManifestError: it can't be, or it is not UTF-8, or no CSV where that is read.
    """
    try:
        file = path.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise ManifestError(
            f"{path}: cannot be read ({error.strerror}); check its path and mode"
        ) from None
    with file:
        try:
            yield file
        except UnicodeDecodeError as error:
            raise ManifestError(f"{path}: not UTF-8 ({error.reason}); save it as UTF-8") from None
        except csv.Error as error:
            raise ManifestError(f"{path}: not CSV ({error}); mend it") from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank."""
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if text := line.strip():
                yield number, text


def _json(path: Path, kind: type | tuple[type, ...]) -> Any:
    with _open(path) as file:
        try:
            value = json.load(file)
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{path}: not JSON ({error}); copy it again") from None
    if not isinstance(value, kind):
        raise ManifestError(
            f"{path}: holds a {type(value).__name__}, which this format has not; give another "
            "file or --format"
        )
    return value


def _number(text: Any, where: str) -> float:
    try:
        number = float(text)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ManifestError(f"{where}: {text!r} is not a time in seconds; mend it, or remove it")
    return number
