"""Random draws keyed by seed, batch and rank: the same again after a resume."""

import numpy as np
import torch


def keyed_generator(device: torch.device, *key: int) -> torch.Generator:
    """Return a generator on `device` whose stream depends on every number of `key`."""
    state = np.random.SeedSequence(key).generate_state(2, np.uint32)
    seed = int(state[0]) << 31 | int(state[1]) >> 1
    return torch.Generator(device).manual_seed(seed)


def batch_generator(
    device: torch.device, seed: int, num_batches: torch.Tensor
) -> torch.Generator:
    """Return the generator of the next training batch on this rank, and count it.

    ESPnet gives all ranks the same global stream, so the key holds the rank.

    Args:
        device: Where the draws are made.
        seed: Of the training.
        num_batches: The model's counter, a 0-dimensional buffer; it is increased. (A
            float: ESPnet's averaging of checkpoints sums integer buffers.)
    """
    parallel = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank = torch.distributed.get_rank() if parallel else 0
    num_batches += 1
    return keyed_generator(device, seed, int(num_batches), rank)
