"""One thread everywhere: bitwise comparisons between processes need equal sums."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import torch

torch.set_num_threads(1)
