"""Seeded splits of clips into parts, balanced by class, that never divide a group."""

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

FAR = 0.25  # of its share that a part may be off without a word


def partition_groups(
    groups: Mapping[str, str],
    labels: Mapping[str, Sequence[str]],
    shares: Sequence[float],
    rng: np.random.Generator,
) -> dict[str, int]:
    """Give every clip a part, so that each part gets its share of every class.

    Clips of one group (one recording) stay together. Greedy: large groups first, in
    an order that is random otherwise; each goes to the part that lacks its labels
    most. A part that has its share of all clips takes no more: else the last clip of
    every rare class would go to the largest part. Parts that end far from their share
    are said. scikit-learn's StratifiedGroupKFold does this for one label a clip and
    equal shares only.

    Args:
        groups: Group of each clip.
        labels: Labels of each clip; all empty for unlabelled data.
        shares: Relative size of each part.
        rng: Where the order of equal groups comes from.

    Returns:
        Number of the part of each clip.

    Raises:
        ValueError: There are fewer groups than parts.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for clip in sorted(groups):
        members[groups[clip]].append(clip)
    if len(members) < len(shares):
        raise ValueError(
            f"{len(members)} recording(s) cannot be split into {len(shares)} parts, as "
            "clips of one recording stay together: add recordings, say what is one "
            "recording, or cut a long one into four files or more"
        )
    names = sorted(members)
    order = [names[i] for i in rng.permutation(len(names))]
    order.sort(key=lambda name: -len(members[name]))
    # What each part still lacks, by label; "" counts clips of any label.
    total = Counter(label for clip in groups for label in ("", *labels[clip]))
    fractions = np.asarray(shares, dtype=float) / sum(shares)
    lacking = [
        {label: count * share for label, count in total.items()} for share in fractions
    ]
    parts: dict[str, int] = {}
    sizes = Counter()  # groups in each part
    for left, name in zip(range(len(order), 0, -1), order, strict=True):
        counts = Counter(lb for clip in members[name] for lb in ("", *labels[clip]))

        # How much each part lacks the group's labels; then how much it lacks clips.
        need = [(sum(of[lb] for lb in counts if lb), of[""]) for of in lacking]
        empty = [part for part in range(len(shares)) if not sizes[part]]
        # The last groups go to parts that have none at all.
        room = [part for part, of in enumerate(lacking) if of[""] >= counts[""] / 2]
        choices = empty if 0 < len(empty) >= left else room or range(len(shares))
        best = max(choices, key=lambda part, need=need: need[part])
        sizes[best] += 1
        for label, count in counts.items():
            lacking[best][label] -= count
        parts.update((clip, best) for clip in members[name])
    reached = fractions - [of[""] / len(groups) for of in lacking]
    if (abs(reached - fractions) > FAR * fractions).any():
        logging.warning(
            "the parts hold %s of the clips instead of %s: clips of one recording stay "
            "together, and there are %d recordings",
            *(" / ".join(f"{of:.1%}" for of in row) for row in (reached, fractions)),
            len(members),
        )
    return parts


def hold_out(
    groups: Mapping[str, str], share: float, rng: np.random.Generator
) -> dict[str, int]:
    """Part 0 (kept) or 1 (held out) of each clip, whatever its labels.

    Of 4 groups or more at least two clips are held out, as one has none to mix with.

    Raises:
        ValueError: There are fewer than two groups.
    """
    no_labels: dict[str, list[str]] = {clip: [] for clip in groups}
    count = len(set(groups.values()))
    if count >= 4:
        share = max(share, 2 / count)
    parts = partition_groups(groups, no_labels, [1 - share, share], rng)
    if count >= 4 and sum(parts.values()) < 2:  # of very unequal groups
        kept = Counter(groups[clip] for clip in sorted(parts) if not parts[clip])
        least = min(kept, key=kept.__getitem__)
        parts |= {clip: 1 for clip in parts if groups[clip] == least}
    return parts
