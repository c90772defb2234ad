"""Groups of manifest rows, such as the videos of one recording, which are not independent."""

import re

from .errors import ManifestError, SettingsError
from .manifest import VideoRow

BY_FILE = "file"


def check_group(pattern: str | None) -> None:
    """Refuse a `--group` that is not a regular expression.

    Raises:
        SettingsError: it is not.
    """
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise SettingsError(
            f"--group {pattern!r}: not a regular expression ({error}); correct it"
        ) from None


def group_of(row: VideoRow, pattern: str) -> str:
    r"""Return the name of a row's group.

    Args:
        row: the row.
        pattern: `file` for the row's path; or a regular expression that is searched for in
            `video_id`, whose match, or the groups of which, name the group.

    Raises:
        ManifestError: the row's id does not match the expression.

    >>> group_of(VideoRow(video_id="cam3-0042", path="a.mp4"), r"^(\w+)-")
    'cam3'
    """
    if pattern == BY_FILE:
        return row.path
    match = re.search(pattern, row.video_id)
    if match is None:
        raise ManifestError(
            f"video_id {row.video_id!r} has no match for --group {pattern!r}; every row needs one: "
            "extend the expression"
        )
    return "\0".join(part or "" for part in match.groups()) if match.groups() else match[0]
