"""One thread everywhere: bitwise comparisons between processes need equal sums."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import torch  # noqa: E402

torch.set_num_threads(1)
