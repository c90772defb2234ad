"""Settings of `vtnpipe finetune`, beside those of every training."""

from dataclasses import dataclass
from typing import Literal

from ...extract.decode.frames import Decoder
from ...extract.decode.sampling import Sampling
from ...manifests.errors import SettingsError
from ...temporal.config import FRAME_TASKS
from ..settings import (
    above,
    at_least,
    between,
    check_unset,
    chunk_frames_setting,
    decoder_setting,
    setting,
)
from .settings import TrainSettings

WITHOUT_MODEL = "With --from none"
NEW_BACKBONE = (
    "backbone",
    "weights",
    "pool",
    "image_size",
    "fps",
    "frame_stride",
)  # only with --from none
AUGMENTATION = ("short_side_min", "short_side_max", "flip")


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(TrainSettings):
    """Settings of `vtnpipe finetune`."""

    from_: str = setting(
        "none",
        help="Stage-two run or model whose backbone and temporal model are the initial ones; none: "
        "the backbone of --backbone, and a new temporal model.",
        metavar="RUN|MODEL|none",
    )
    new_head: bool = setting(
        False, help="Create a new head for the manifest's classes, on the initial model."
    )
    backbone: str | None = setting(
        None,
        help=f"{WITHOUT_MODEL}: timm name, hf-hub: name, or package.module:factory; by default the "
        "preset's, else vit_base_patch16_224.",
        metavar="NAME",
    )
    weights: str = setting(
        "pretrained",
        help=f"{WITHOUT_MODEL}: pretrained, none (random, always the same), or a safetensors or "
        "PyTorch file.",
        metavar="pretrained|none|FILE",
    )
    pool: str | None = setting(
        None, help=f"{WITHOUT_MODEL}: pooling of a timm model, not its own.", metavar="NAME"
    )
    image_size: int | None = setting(
        None,
        help=f"{WITHOUT_MODEL}: height and width of the backbone's input, in place of its own; "
        "pixels.",
        check=at_least(1),
    )
    fps: float | None = setting(
        None,
        help=f"{WITHOUT_MODEL}: frames per second to take, nearest to a steady rate.",
        check=above(0),
    )
    frame_stride: int = setting(
        1, help=f"{WITHOUT_MODEL}: take every Nth frame.", check=at_least(1)
    )
    train_blocks: int | None = setting(
        None,
        help="Number of the backbone's last blocks to train; by default all of it.",
        check=at_least(0),
    )
    layer_decay: float = setting(
        1.0,
        help="Factor of the learning rate for each layer further from the head.",
        check=between(1e-3, 1),
    )
    augment: Literal["yes", "no"] = setting(
        "yes", help="Random scales, crops and mirroring; no: evaluation's preprocessing."
    )
    short_side_min: int | None = setting(
        None,
        help="Smallest short side of a frame before its crop; by default 256 for crops of 224.",
        check=at_least(1),
    )
    short_side_max: int | None = setting(
        None,
        help="Largest short side of a frame before its crop; by default 320 for crops of 224.",
        check=at_least(1),
    )
    flip: Literal["auto", "yes", "no"] = setting(
        "auto", help="Mirror half of the clips; auto: unless a class name has left or right."
    )
    val_clips: int = setting(
        0,
        help="Validate on so many clips, evenly spaced; 0: every frame at once.",
        check=at_least(0),
    )
    chunk_frames: int = chunk_frames_setting("Frames per backbone call in validation.")
    num_workers: int | None = setting(
        None,
        help="Clips that are decoded at the same time, per training process; by default one per "
        "core, at most 8.",
        check=at_least(0),
    )
    decoder: Decoder = decoder_setting("pyav: also for whole videos, in validation.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.from_ == "none" and self.new_head:
            raise SettingsError("--new-head with --from none: all is new; leave out one of the two")
        Sampling(fps=self.fps, frame_stride=self.frame_stride)
        if self.from_ != "none":
            check_unset(self, NEW_BACKBONE, f"the backbone is that of --from {self.from_}")
        if self.decoder == "decord":
            raise SettingsError(
                "--decoder decord: clips start in the middle of files, where decord is not exact; "
                "give auto or pyav"
            )
        if self.task in FRAME_TASKS:
            check_unset(self, ["val_clips"], f"--task {self.task} is validated on whole videos")
        if self.augment == "no":
            check_unset(self, AUGMENTATION, "--augment no uses evaluation's preprocessing")
