"""How frames become a backbone's input: the words in which it is stored and compared."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an upright RGB frame becomes the backbone's input, in the words of timm's data
    configuration.
    """

    input_size: tuple[int, int, int]  # (3, H, W)
    interpolation: str
    crop_pct: float
    crop_mode: str
    mean: tuple[float, ...]  # of RGB in [0, 1]
    std: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON gives it back: tuples are lists."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Preprocessing":
        """From what extraction.json or config.json says, where tuples are lists."""
        tuples: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**tuples)
