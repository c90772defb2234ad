"""Image sequences: folders and archives of images in place of a video, and their rate.

The rate stands behind the path, as in `frames/v1?fps=12.5`; a manifest has it in a column of its
own. Without one it is 25 images per second.
"""

import re
from pathlib import Path

ARCHIVES = (".zip", ".tar")
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png")
DEFAULT_FPS = 25.0
_RATE = re.compile(r"(.*)\?fps=([0-9.e+-]+)", re.DOTALL)


def with_rate(path: str, fps: float) -> str:
    """Return the path of a sequence with its rate.

    >>> with_rate("frames/v1", 12.5)
    'frames/v1?fps=12.5'
    """
    return f"{path}?fps={fps!r}"


def split_rate(path: str) -> tuple[str, float | None]:
    """Return a path without the rate, and the rate in images per second; None if it has none.

    >>> split_rate("frames/v1?fps=12.5"), split_rate("a.mp4")
    (('frames/v1', 12.5), ('a.mp4', None))
    """
    if "?fps=" in path and (found := _RATE.fullmatch(path)):
        try:
            return found[1], float(found[2])
        except ValueError:
            pass
    return path, None


def is_image_sequence(path: str) -> bool:
    """Return whether a path, with or without a rate, is that of a folder or archive."""
    bare = Path(split_rate(path)[0])
    return bare.suffix.lower() in ARCHIVES or bare.is_dir()
