"""The video manifest: a CSV with one row per clip, read into `VideoRow`s and written back.

    video_id,path,label,split[,start,end,fps]

`video_id` is unique; `path` is relative to the manifest's folder, or absolute; `label` and `split`
may be empty; `start` and `end` are seconds on the video's own clock (0 is its first presented
frame), half open; `fps` is the rate of a folder or archive of images. Reading touches no video
file, so a million rows take seconds.
"""

import csv
import math
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .atomic import atomic_text
from .errors import ManifestError
from .image_sequences import is_image_sequence, split_rate, with_rate

COLUMNS = ("video_id", "path", "label", "split")
SPAN_COLUMNS = ("start", "end")
RATE_COLUMN = "fps"


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoRow:
    """One row of a manifest.

    Attributes:
        video_id: unique in its manifest.
        path: absolute path of the video file; of an image sequence, with its rate, see
            `image_sequences.py`.
        label: class name, in Unicode's form NFC; `a|b` for several; a number for regression; may be
            empty.
        split: name of the split, such as `train`; may be empty.
        start: first second of the span; None for the beginning.
        end: second before which the span stops; None for the end.
    """

    video_id: str
    path: str
    label: str = ""
    split: str = ""
    start: float | None = None
    end: float | None = None


def nfc(text: str) -> str:
    """Return a name in Unicode's normal form NFC, in which equal names are equal texts."""
    return unicodedata.normalize("NFC", text)


def read_manifest(path: str | os.PathLike[str]) -> list[VideoRow]:
    """Read a manifest and check it, without opening any video.

    Raises:
        ManifestError: the file is missing or not UTF-8, a column is missing, repeated or unknown,
            or a row is invalid. The message begins with `FILE:LINE:`.
    """
    path = Path(path)
    base = str(path.parent.absolute())  # symbolic links stay unresolved
    first_lines: dict[str, int] = {}
    rows: list[VideoRow] = []
    for line, fields in read_records(
        path,
        COLUMNS,
        (*SPAN_COLUMNS, RATE_COLUMN),
        what="manifest; make one with `vtnpipe manifest build`",
    ):
        try:
            row = _parse_row(fields, base)
        except ManifestError as error:
            raise ManifestError(f"{path}:{line}: {error}") from None
        first = first_lines.setdefault(row.video_id, line)
        if first != line:
            raise ManifestError(
                f"{path}:{line}: video_id {row.video_id!r} is also on line "
                f"{first}; ids must be unique: rename one"
            )
        rows.append(row)
    if not rows:
        raise ManifestError(f"{path}: no rows; a manifest needs at least one below its header")
    return rows


def read_records(
    path: Path, required: Sequence[str], optional: Sequence[str], *, what: str
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (number of the row's last line, column → text) for each row of a CSV that is not blank.

    Args:
        path: path of the file.
        required: columns that it must have.
        optional: columns that it may have.
        what: what the file is, for the message if it is missing.

    Raises:
        ManifestError: the file is missing or not UTF-8, or a column is missing, repeated or
            unknown.
    """
    try:
        file = path.open(encoding="utf-8-sig", newline="")
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such {what}") from None
    except OSError as error:
        raise ManifestError(f"cannot read {path} ({error.strerror}); give a CSV file") from None
    with file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, None)
            if header is None:
                raise ManifestError(
                    f"{path}: empty; the first line must be {','.join(required)}"
                    f"[,{','.join(optional)}]"
                )
            _check_header(header, required, optional, path)
            for record in reader:
                if not record:
                    continue
                if len(record) != len(header):
                    raise ManifestError(
                        f"{path}:{reader.line_num}: {len(record)} fields, but the header names "
                        f"{len(header)} columns; quote a field that holds a comma"
                    )
                yield reader.line_num, dict(zip(header, record, strict=True))
        except UnicodeDecodeError as error:
            line = _first_undecodable_line(path)
            raise ManifestError(
                f"{path}:{line}: not UTF-8 ({error.reason}); save the file as UTF-8"
            ) from None
        except csv.Error as error:
            raise ManifestError(
                f"{path}:{reader.line_num}: not CSV ({error}); check the quotes"
            ) from None


def _first_undecodable_line(path: Path) -> int:
    """Return the number of the first line that is not UTF-8.

    Text is decoded in blocks, so the position of the error does not tell the line.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def _check_header(
    header: list[str], required: Sequence[str], optional: Sequence[str], path: Path
) -> None:
    known = (*required, *optional)
    for name in header:
        if name not in known:
            raise ManifestError(
                f"{path}:1: unknown column {name!r}; columns are "
                f"{', '.join(known)}: rename or remove it"
            )
        if header.count(name) > 1:
            raise ManifestError(f"{path}:1: column {name!r} appears more than once; keep one")
    for name in required:
        if name not in header:
            raise ManifestError(
                f"{path}:1: column {name!r} is missing; needed are {', '.join(required)}: add it"
            )


def _parse_row(fields: dict[str, str], base: str) -> VideoRow:
    video_id, path = fields["video_id"], fields["path"]
    for name, value in (("video_id", video_id), ("path", path)):
        if not value.strip():
            raise ManifestError(f"{name} is empty; every row needs one")
        if "\0" in value:
            raise ManifestError(f"{name} {value!r} holds a NUL character; remove it")
    start, end = (
        parse_seconds(name, fields[name]) if fields.get(name, "").strip() else None
        for name in SPAN_COLUMNS
    )
    if end is not None and end <= (start or 0.0):
        raise ManifestError(
            f"end {end:g} is not after start {start or 0.0:g}; a "
            "span is start <= t < end, in seconds: correct one, or leave it empty"
        )
    # A URL stays as written, so that it is refused as a URL and not as a missing file.
    path = path if "://" in path else os.path.join(base, path)  # noqa: PTH118
    if rate := fields.get(RATE_COLUMN, "").strip():
        path = with_rate(path, _parse_rate(rate))
    return VideoRow(
        video_id=video_id,
        path=path,
        label=nfc(fields["label"]),
        split=fields["split"],
        start=start,
        end=end,
    )


def _parse_rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not (math.isfinite(rate) and rate > 0):
        raise ManifestError(f"fps {text!r} is not a rate; give images per second, more than 0")
    return rate


def parse_seconds(name: str, text: str) -> float:
    """Return the seconds that a field of a CSV holds.

    Raises:
        ManifestError: it holds no number, or a negative one.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ManifestError(f"{name} {text!r} is not a time; give seconds, 0 or more")
    return seconds


def write_manifest(rows: Iterable[VideoRow], path: str | os.PathLike[str]) -> None:
    """Write rows as a manifest, atomically; paths below the manifest's folder become relative.

    The columns `start` and `end`, and `fps`, are written only if a row has a value.

    Raises:
        ManifestError: the path is a folder or in no folder, or a name is not valid UTF-8.
        StorageError: the disk is full, lost or read-only.
    """
    rows = list(rows)
    path = Path(path)
    if path.is_dir():
        raise ManifestError(f"{path}: is a folder; give a file")
    if not path.parent.is_dir():
        raise ManifestError(f"{path}: its folder does not exist; create it, or give another path")
    try:
        _write(rows, path, str(path.parent.absolute()))
    except UnicodeEncodeError as error:
        raise ManifestError(
            f"{path}: {error.object!r} is not valid UTF-8; rename the file"
        ) from None


def with_image_rate(rows: Iterable[VideoRow], fps: float | None) -> list[VideoRow]:
    """Return rows with a rate for the image sequences that have none; unchanged if it is None."""
    if fps is None:
        return list(rows)
    return [
        replace(row, path=with_rate(row.path, fps))
        if split_rate(row.path)[1] is None and is_image_sequence(row.path)
        else row
        for row in rows
    ]


def update_manifest(rows: Sequence[VideoRow], path: Path) -> list[VideoRow]:
    """Write the given rows, and then those that only the file has, and return all of them."""
    given = {row.video_id for row in rows}
    earlier = read_manifest(path) if path.exists() else []
    rows = [*rows, *(row for row in earlier if row.video_id not in given)]
    write_manifest(rows, path)
    return rows


def _write(rows: list[VideoRow], path: Path, base: str) -> None:
    has_spans = any(row.start is not None or row.end is not None for row in rows)
    has_rates = any(split_rate(row.path)[1] is not None for row in rows)
    columns = (*COLUMNS, *SPAN_COLUMNS * has_spans, *(RATE_COLUMN,) * has_rates)
    with atomic_text(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            bare, rate = split_rate(row.path)
            fields = [row.video_id, _relative(bare, base), row.label, row.split]
            if has_spans:
                fields += ["" if t is None else repr(t) for t in (row.start, row.end)]
            if has_rates:
                fields.append("" if rate is None else repr(rate))
            writer.writerow(fields)


def _relative(path: str, base: str) -> str:
    return path[len(base) + 1 :] if path.startswith(base + os.sep) else path


def has_numbers_as_labels(rows: Sequence[VideoRow]) -> bool:
    """Return whether labels are mostly distinct numbers, as for a regression."""
    labels = {row.label for row in rows}
    return len(labels) > len(rows) / 2 and all(map(_is_number, labels))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
