"""A short soak; `make soak` takes 25 times as many updates."""

import pytest
import torch

from tests.soak import KINDS, Soak, counts


@pytest.mark.slow
def test_no_fault_changes_a_training(tmp_path):
    torch.set_num_threads(1)
    soak = Soak(tmp_path, updates=400, every=6, seed=0)
    assert soak.run() == []
    tried, _ = counts(soak.records("leg"))
    assert set(KINDS) <= set(+tried), tried


def test_another_soak_is_not_continued(tmp_path):
    Soak(tmp_path, updates=400, every=6, seed=0)
    with pytest.raises(ValueError, match="remove it"):
        Soak(tmp_path, updates=400, every=6, seed=1)
