"""Seeded splits meet their shares of all clips, also where classes are rare."""

from collections import Counter

import numpy as np
import pytest

from espnet2_sslam.corpus import hold_out, partition_groups

SHARES = [0.8, 0.1, 0.1]


def split(sizes, group=lambda key: key):
    """Parts of clips of so many of each class; and the labels of each clip."""
    labels = {f"c{c}_{i}": [f"c{c}"] for c, n in enumerate(sizes) for i in range(n)}
    groups = {key: group(key) for key in labels}
    rng = np.random.default_rng(0)
    return partition_groups(groups, labels, SHARES, rng), labels


@pytest.mark.parametrize(
    "sizes, classes_in_test",
    [
        ([3] * 200, 55),
        ([1] * 30 + [2] * 30 + [3] * 40, 20),
        ([6] * 100, 55),
        ([500 // (i + 1) for i in range(50)], 50),  # Zipf
        ([40] * 50, 50),
        ([2] * 5, 1),
    ],
)
def test_every_part_has_its_share_however_rare_the_classes(
    sizes, classes_in_test, caplog
):
    parts, labels = split(sizes)
    counts = Counter(parts.values())
    for part, share in enumerate(SHARES):
        assert counts[part] == pytest.approx(share * sum(sizes), abs=1)
    tested = {labels[key][0] for key, part in parts.items() if part == 2}
    assert len(tested) >= classes_in_test
    assert not caplog.text


def test_a_part_far_from_its_share_is_said(caplog):
    parts, _ = split([90, 5, 5], group=lambda key: key.split("_")[0])
    assert Counter(parts.values()) == {0: 90, 1: 5, 2: 5}
    assert "the parts hold 90.0% / 5.0% / 5.0% of the clips instead of" in caplog.text


def test_fewer_recordings_than_parts_say_what_a_recording_is():
    with pytest.raises(ValueError, match="clips of one recording stay together"):
        split([30], group=lambda key: "mixture")


@pytest.mark.parametrize("sizes", [[1] * 4, [1] * 14, [5, 5, 5, 1], [9, 9, 9, 9]])
def test_of_four_recordings_or_more_two_clips_are_held_out(sizes):
    groups = {f"{g}_{i}": str(g) for g, n in enumerate(sizes) for i in range(n)}
    parts = hold_out(groups, 0.1, np.random.default_rng(0))
    assert 2 <= sum(parts.values()) <= max(2, len(groups) // 2)
    assert len({(groups[clip], part) for clip, part in parts.items()}) == len(sizes)
