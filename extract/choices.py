"""The words that stage one's settings take; light, so that the command line can name them without
torch.
"""

from typing import Literal

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Decoder = Literal["auto", "decord", "pyav"]
Store = Literal["float16", "float32"]
Views = Literal["centre", "flip", "three-crop"]

VIEW_NAMES: dict[str, tuple[str, ...]] = {
    "centre": ("centre",),
    "flip": ("centre", "flip"),
    "three-crop": ("left", "centre", "right"),  # along the longer side: of a tall frame, from above
}
