"""However a run is killed, changed, damaged, repaired and extended: the right scores.

`python -m tests.scripted_user --rounds 50 --folder DIR` plays more of it by hand.
"""

import pytest

from tests.scripted_user import play


@pytest.mark.slow
def test_a_disturbed_run_ends_with_the_scores_of_what_is_on_the_disk(tmp_path):
    assert play(tmp_path / "user", rounds=2, seed=3).total() >= 2
