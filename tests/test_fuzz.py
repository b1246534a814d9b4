"""Mutated inputs through every reader; `make fuzz` takes ten times as many."""

import pytest

from tests.fuzz import run


@pytest.mark.slow
def test_no_mutated_input_harms_or_ends_in_a_traceback():
    counts, faults = run(1_000, seed=1)
    assert faults == []
    # the changes are neither too mild nor too wild to tell anything
    outcomes = {"read": 0, "refused": 0}
    for (_, outcome), number in counts.items():
        if outcome in outcomes:
            outcomes[outcome] += number
    assert min(outcomes.values()) > 150, outcomes
