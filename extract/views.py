"""Views: the crops of a frame that the backbone sees, as `--views` names them."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

Views = Literal["center", "flip", "three-crop"]

# Value of --views → names of the views of a frame, in the order of a feature's rows [V, D].
VIEW_NAMES: dict[str, tuple[str, ...]] = {
    "center": ("center",),
    "flip": ("center", "flip"),  # mirrored left to right
    "three-crop": ("left", "center", "right"),  # along the longer side; of a tall frame, from above
}


def crop_view(
    images: Tensor, view: str, size: tuple[int, int], center_crop: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return one view of resized frames.

    Args:
        images: [N, 3, H, W] uint8.
        view: name of the view.
        size: (h, w) of the view.
        center_crop: the backbone's own crop, [N, 3, H, W] → [N, 3, h, w].

    Returns:
        [N, 3, h, w] uint8; may share memory with `images`.
    """
    if view == "center":
        return center_crop(images)
    if view == "flip":
        return center_crop(images).flip(-1)
    height, width = size
    top, left = crop_offset(view, (images.shape[-2], images.shape[-1]), size)
    return images[..., top : top + height, left : left + width]


def crop_offset(view: str, have: tuple[int, int], want: tuple[int, int]) -> tuple[int, int]:
    """Return (top, left) of a crop at one end of an image's longer side.

    >>> crop_offset("right", (224, 300), (224, 224)), crop_offset("left", (300, 250), (224, 224))
    ((0, 76), (0, 13))

    Args:
        view: `left` or `right`; of a tall image, its upper or lower end.
        have: height and width of the image.
        want: height and width of the crop.
    """
    room = [have[0] - want[0], have[1] - want[1]]
    longer = 1 if have[1] >= have[0] else 0
    offset = [round(room[0] / 2), round(room[1] / 2)]
    offset[longer] = 0 if view == "left" else room[longer]
    return offset[0], offset[1]
