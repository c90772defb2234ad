"""Long sequences in blocks and large batches in groups, so that what is wide is small at any time.

Blocks come from `Tensor.split`, whose gradient is one concatenation; slices would each have one of
the whole sequence's length.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

BLOCK_TOKENS = {"cpu": 2048}  # the fastest of 512 to 4096
OTHER_BLOCK_TOKENS = 16_384  # enough for a GPU's many units


def block_tokens(sequence: Tensor) -> int:
    """How many tokens go through a layer at once, on the device of a tensor."""
    return BLOCK_TOKENS.get(sequence.device.type, OTHER_BLOCK_TOKENS)


def in_blocks(sequences: Tensor, least: int = 1) -> tuple[Tensor, ...]:
    """Cuts sequences [B, N, ...] along N into blocks of one length, the last one shorter.

    >>> [block.shape[1] for block in in_blocks(torch.zeros(1, 5000, 8))]
    [2048, 2048, 904]
    """
    length = max(least, block_tokens(sequences) // max(1, len(sequences)))
    blocks: tuple[Tensor, ...] = sequences.split(length, dim=1)
    return blocks


def in_groups(sequences: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cuts a batch [B, N, ...] into groups of sequences that go through as one block, if they can.

    >>> [len(group) for group, in in_groups(torch.zeros(16, 300, 8))]
    [6, 6, 4]
    """
    size = max(1, block_tokens(sequences) // max(1, sequences.shape[1]))
    return zip(*(tensor.split(size) for tensor in (sequences, *others)), strict=True)


def joined(blocks: Iterable[Tensor], length: int) -> Tensor:
    """The sequence [B, N, D] of blocks [B, n, D]; without gradients, only one of them is held."""
    if torch.is_grad_enabled():
        return torch.cat(list(blocks), dim=1)
    sequence, stop = None, 0
    for block in blocks:
        if block.shape[1] == length:
            return block
        if sequence is None:
            sequence = block.new_empty(block.shape[0], length, *block.shape[2:])
        start, stop = stop, stop + block.shape[1]
        sequence[:, start:stop] = block
    assert sequence is not None
    assert stop == length
    return sequence
