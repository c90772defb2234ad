"""Which samples make a batch, and in which order: functions of lengths and seeds alone."""

import numpy as np
import numpy.typing as npt

from .dataset import Key

BLOCK_BATCHES = 32  # of training: lengths are sorted among the clips of so many batches
MAX_FRAMES = 2**17  # of an evaluation batch with its padding, unless one video alone has more


def training_batches(
    lengths: npt.NDArray[np.int64], batch_size: int, *, seed: int, epoch: int
) -> list[list[Key]]:
    """Every clip once in random order, but those of similar length together.

    Blocks of the shuffled clips are sorted by length (stably, so that equal ones stay shuffled),
    cut into batches, and the batches shuffled.
    """
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(lengths))
    block = BLOCK_BATCHES * batch_size
    for start in range(0, len(order), block):
        part = order[start : start + block]
        order[start : start + block] = part[np.argsort(lengths[part], kind="stable")]
    starts = np.arange(0, len(order), batch_size)
    generator.shuffle(starts)
    return [[(int(n), epoch) for n in order[start : start + batch_size]] for start in starts]


def evaluation_batches(
    lengths: npt.NDArray[np.int64], num_draws: int, batch_size: int
) -> list[list[Key]]:
    """All draws of every row, the longest first; long ones in smaller batches.

    >>> evaluation_batches(np.array([5, 9, 5]), 1, 2)
    [[(1, 0), (0, 0)], [(2, 0)]]
    """
    batches: list[list[Key]] = []
    longest = 0
    for number in np.argsort(-lengths, kind="stable").tolist():
        for draw in range(num_draws):
            is_full = not batches or len(batches[-1]) == batch_size
            if is_full or (len(batches[-1]) + 1) * longest > MAX_FRAMES:
                batches.append([])
                longest = int(lengths[number])
            batches[-1].append((number, draw))
    return batches


def share_of(keys: list[Key], index: int, num_shares: int) -> list[Key]:
    """One of so many shares of a batch, of sizes that differ by one at most; it may be empty.

    >>> [share_of([(0, 0), (1, 0), (2, 0)], index, 2) for index in (0, 1)]
    [[(0, 0), (1, 0)], [(2, 0)]]
    """
    return [keys[n] for n in np.array_split(np.arange(len(keys)), num_shares)[index]]
