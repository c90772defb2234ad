"""Settings that several commands have: their defaults and checks, in one place."""

from typing import Any

from .settings import at_least, between, setting


def device(help: str = "Where to run.") -> Any:
    """Of what is computed."""
    return setting("auto", help=help, metavar="auto|cpu|cuda|cuda:N")


def decoder(help: str = "auto: decord where it is known to be right, else PyAV.") -> Any:
    """Of videos."""
    return setting("auto", help=help)


def chunk_frames(help: str = "Frames that go through the backbone at once.") -> Any:
    """Memory for frames and what the backbone makes of them grows with it."""
    return setting(32, help=help, check=at_least(1))


def clip_frames(help: str) -> Any:
    """The paper's for training."""
    return setting(16, help=help, check=at_least(1))


def clip_seconds(help: str = "Length of a clip, in seconds.") -> Any:
    """The paper's for training: 128 frames at 25 a second."""
    return setting(5.12, help=help, check=between(0.01, 1e6))


def seed(help: str) -> Any:
    """Of whatever is drawn."""
    return setting(0, help=help, check=between(0, 2**31))


def labels_of_features() -> Any:
    """A manifest instead of the features' own."""
    return setting(
        None,
        help="A manifest whose labels and splits count; by default the features' own.",
        metavar="FILE",
    )


def drop_partial() -> Any:
    """By default, what is there of a video counts."""
    return setting(False, help="Leave out videos with missing frames.")
