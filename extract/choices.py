"""The words that stage one's settings take; light, so that the command line can name them without
torch.
"""

from typing import Literal

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Decoder = Literal["auto", "decord", "pyav"]
Store = Literal["float16", "float32"]
