#!/usr/bin/env python3
"""Make mixtures of 1, 2, 3, ... sounds of another corpus: labels against polyphony.

--corpus_dir is the data directory of a labelled corpus (data/esc50 after stage 1 of
ESC-50); its clips with exactly one label are the sources. They are divided by recording
(utt2spk) into train, valid and test, so that no recording is heard in two of them;
labels with too few recordings for both train and test are left out. A mixture of degree
k holds k sources of k different labels, which are its labels; all but the first are
scaled to a signal-to-noise ratio drawn from --snr. Training and validation hold all
degrees in equal shares, polyphony/degree_<k> is a test split. No two mixtures have the
same sources, so there are at most as many of degree 1 as sources. mixtures.csv lists
the sources of every mixture with their levels. Pre-training gets the sources of train
and valid, unmixed: the test recordings are not heard in it.

The paper's own benchmark on degrees of polyphony was cut from AudioSet by the authors
and is not released; this one is another, which anyone can rebuild from the seed.
"""

import argparse
import csv
import io
import logging
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import (
    CLASS_FILE,
    Downstream,
    Part,
    Source,
    begin_corpus,
    choose,
    finish_corpus,
    mix,
    parallel_map,
    partition_groups,
    random_numbers,
    read_sources,
    write_atomically,
    write_split,
)
from espnet2_sslam.units import SAMPLE_RATE

SPLITS = ("train", "valid", "test")
ATTEMPTS = 50  # to find a mixture that was not made yet
COLUMNS = ("mixture", "source", "recording", "label", "snr_db")


class Mixture(NamedTuple):
    """What one file is made of."""

    split: str
    key: str
    parts: list[Part]


def plan(sources: dict[str, list[Source]], args) -> list[Mixture]:
    """Draw all mixtures; the audio is not touched.

    No two mixtures have the same sources: where there are too few (of degree 1 there
    are as many as sources), less than what was asked for is made.

    Args:
        sources: Those of train, valid and test.
    """
    wanted = []
    for name, count in (("train", args.train_clips), ("valid", args.valid_clips)):
        degrees = [args.degrees[i % len(args.degrees)] for i in range(count)]
        wanted += [(name, name, degree, i) for i, degree in enumerate(degrees)]
    for degree in args.degrees:
        name = f"degree_{degree}"
        wanted += [("test", name, degree, i) for i in range(args.test_clips)]
    by_label = {split: {} for split in SPLITS}
    for split, of_split in sources.items():
        for source in of_split:
            by_label[split].setdefault(source.label, []).append(source)
    mixtures, seen = [], set()
    for split, name, degree, number in wanted:
        key = f"{name}_{number:05d}"
        rng = random_numbers(args.seed, key)
        for _ in range(ATTEMPTS):
            parts = choose(by_label[split], degree, tuple(args.snr), rng)
            content = (split, frozenset(part.source.key for part in parts))
            if content not in seen:
                seen.add(content)
                mixtures.append(Mixture(f"polyphony/{name}", key, parts))
                break
    return mixtures


def render(mixture: Mixture, datadir: Path, seconds: float) -> str:
    """Write one mixture and return its path."""
    path = datadir / "audio" / mixture.split / f"{mixture.key}.flac"
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = mix(mixture.parts, int(seconds * SAMPLE_RATE))
    soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
    return str(path)


def divide(sources: list[Source], args) -> dict[str, list[Source]]:
    """Divide the sources by recording; leave out labels that train or test lacks.

    Raises:
        ValueError: No label is left.
    """
    groups = {source.key: source.recording for source in sources}
    labels = {source.key: [source.label] for source in sources}
    rng = np.random.default_rng(args.seed)
    parts = partition_groups(groups, labels, args.shares, rng)
    divided = {
        split: [source for source in sources if parts[source.key] == number]
        for number, split in enumerate(SPLITS)
    }
    trained, tested = (
        {source.label for source in divided[split]} for split in ("train", "test")
    )
    if not trained & tested:
        raise ValueError(
            "train and test have no label in common: each needs recordings of its own, "
            "so take a corpus with more of them or give test a larger share (--shares)"
        )
    return {
        split: [source for source in of_split if source.label in trained & tested]
        for split, of_split in divided.items()
    }


def note_labels(sources: list[Source], divided: dict[str, list[Source]]) -> str:
    """Which labels are left out, as a line of the notes; empty for none."""
    kept = {source.label for of_split in divided.values() for source in of_split}
    gone = sorted({source.label for source in sources} - kept)
    if not gone:
        return ""
    return (
        f"\npolyphony: {len(gone)} of {len(gone) + len(kept)} labels have too few "
        f"recordings for train and test and are left out: {' '.join(gone)}"
    )


def write_mixtures(datadir: Path, mixtures: list[Mixture]) -> None:
    """Write mixtures.csv: a line for each source of each mixture."""
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(COLUMNS)
    for mixture in mixtures:
        for part in mixture.parts:
            source = part.source
            row = (mixture.key, source.key, source.recording, source.label)
            table.writerow([*row, f"{part.snr:.2f}"])
    write_atomically(datadir / "mixtures.csv", stream.getvalue())


def make_corpus(args) -> None:
    """Write all splits below args.datadir."""
    datadir = args.datadir.resolve()
    everything = read_sources(args.corpus_dir)
    sources = divide(everything, args)
    mixtures = plan(sources, args)
    begin_corpus(datadir)
    work = partial(render, datadir=datadir, seconds=args.seconds)
    paths = list(parallel_map(work, mixtures, args.nj, "mixtures"))
    splits = {}
    for mixture, path in zip(mixtures, paths):
        splits.setdefault(mixture.split, {})[mixture.key] = path
    labels = {m.key: sorted({p.source.label for p in m.parts}) for m in mixtures}
    for split, wav in splits.items():
        write_split(datadir / split, wav, labels=labels)
    for split in ("train", "valid"):
        wav = {source.key: source.path for source in sources[split]}
        recordings = {source.key: source.recording for source in sources[split]}
        write_split(datadir / f"pretrain/{split}", wav, recordings)
    write_mixtures(datadir, mixtures)
    classes = sorted({label for of_clip in labels.values() for label in of_clip})
    write_atomically(datadir / "polyphony" / CLASS_FILE, "\n".join(classes) + "\n")
    tests = [f"polyphony/degree_{degree}" for degree in args.degrees]
    ends = "polyphony/train", "polyphony/valid"
    run = Downstream("polyphony", "multi_label", *ends, tests)
    there = [*splits, "pretrain/train", "pretrain/valid"]
    counts = ", ".join(f"{len(sources[split])} for {split}" for split in SPLITS)
    note = (
        f"polyphony: {args.seconds:g} s mixtures of clips of {args.corpus_dir.name} "
        f"({counts}), seed {args.seed}, {args.snr[0]:g} to {args.snr[1]:g} dB"
        f"{note_labels(everything, sources)}"
    )
    finish_corpus(datadir, there, [run], note)
    logging.info("%s; %d mixtures", note, len(mixtures))


def check(args) -> None:
    """Refuse options out of range."""
    if min(args.degrees) < 1 or len(set(args.degrees)) != len(args.degrees):
        raise ValueError(f"--degrees are different numbers from 1 on: {args.degrees}")
    if args.snr[0] > args.snr[1]:
        raise ValueError("--snr needs the lower number first")
    if min(args.train_clips, args.valid_clips, args.test_clips) < len(args.degrees):
        raise ValueError(
            f"--train_clips, --valid_clips and --test_clips must be at least "
            f"{len(args.degrees)}, one of each degree"
        )
    if min(args.shares) <= 0 or not 0.1 <= args.seconds <= 120:
        raise ValueError("--shares must be positive and --seconds from 0.1 to 120")


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--corpus_dir", type=Path, required=True)
    add("--datadir", type=Path, default=Path("data"))
    add("--degrees", type=int, nargs="+", default=[1, 2, 3, 4, 6, 8, 10])
    add("--snr", type=float, nargs=2, default=[-5.0, 5.0], help="in dB [-5 5]")
    add("--seconds", type=float, default=5.0, help="length of a mixture [5]")
    add("--train_clips", type=int, default=1400, help="all degrees together [1400]")
    add("--valid_clips", type=int, default=210, help="all degrees together [210]")
    add("--test_clips", type=int, default=200, help="of each degree [200]")
    add(
        "--shares",
        type=float,
        nargs=3,
        default=[0.5, 0.2, 0.3],
        help="of the sources for train, valid, test [0.5 0.2 0.3]",
    )
    add("--seed", type=int, default=0, help="[0]")
    add("--nj", type=int, default=1, help="processes [1]")
    return parser


def main(argv=None) -> None:
    """Entry point."""
    args = get_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    check(args)
    make_corpus(args)


if __name__ == "__main__":
    run_main(main)
