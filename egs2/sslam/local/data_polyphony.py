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

What a mixture is made of and how loud each source is: espnet2_sslam/corpus/mixtures.py.
"""

import logging
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
from corpus_command import begin, write_pretrain

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import (
    Clip,
    Downstream,
    find_splits,
    label_name,
    parallel_map,
    partition_groups,
    read_label_names,
    read_split,
)
from espnet2_sslam.corpus.mixtures import Mixture, Source, mix, plan
from espnet2_sslam.store import write_csv
from espnet2_sslam.units import SAMPLE_RATE

SPLITS = ("train", "valid", "test")
COLUMNS = ("mixture", "source", "recording", "label", "snr_db")


def read_sources(datadir: Path) -> list[Source]:
    """Return the clips of a data directory that have exactly one label, each once."""
    sources: dict[str, Source] = {}
    for split in find_splits(datadir):
        lists = read_split(datadir, split)
        for key, words in (lists.labels or {}).items():
            if len(words) != 1:
                continue
            recording = lists.speakers.get(key, key)
            source = Source(key, lists.wav[key], recording, words[0])
            if sources.setdefault(key, source) != source:
                raise ValueError(
                    f"{datadir}: two different clips are called {key!r}, one of them "
                    f"in {split}: ids must be unique"
                )
    if not sources:
        raise ValueError(
            f"{datadir} has no clip with exactly one label: mixtures are made of such "
            "clips; give the data directory (stage 1) of a labelled corpus"
        )
    return [source for _, source in sorted(sources.items())]


def divide(sources: list[Source], args) -> dict[str, list[Source]]:
    """Divide the sources by recording; leave out labels that train or test lacks."""
    groups = {source.key: source.recording for source in sources}
    labels = {source.key: [source.label] for source in sources}
    rng = np.random.default_rng(args.seed)
    parts = partition_groups(groups, labels, args.shares, rng)
    of = [[s for s in sources if parts[s.key] == number] for number in range(3)]
    used = {source.label for source in of[0]} & {source.label for source in of[2]}
    if not used:
        raise ValueError(
            "train and test have no label in common: each needs recordings of its own, "
            "so take a corpus with more of them or give test a larger share (--shares)"
        )
    kept = [[source for source in part if source.label in used] for part in of]
    return dict(zip(SPLITS, kept, strict=True))


def render(mixture: Mixture, datadir: Path, seconds: float) -> Clip:
    """Write one mixture and return its clip."""
    path = datadir / "audio/polyphony" / mixture.split / f"{mixture.key}.flac"
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = mix(mixture.parts, int(seconds * SAMPLE_RATE))
    soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
    labels = sorted(part.source.label for part in mixture.parts)
    return Clip(mixture.key, str(path), " ".join(labels))


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


def main(argv=None) -> None:
    """Write all splits below --datadir."""
    args, writer = begin(
        *(argv, __doc__),
        degrees=([1, 2, 3, 4, 6, 8, 10], "numbers of sources in a mixture"),
        snr=((-5.0, 5.0), "range of the levels of sources, dB"),
        seconds=(5.0, "length of a mixture, seconds"),
        train_clips=(1400, "mixtures for training, all degrees together"),
        valid_clips=(210, "mixtures for validation, all degrees together"),
        test_clips=(200, "mixtures for testing, of each degree"),
        shares=((0.5, 0.2, 0.3), "of the sources for train, valid, test"),
        seed=(0, "of sources, levels and places"),
    )
    check(args)
    datadir = args.datadir.resolve()
    everything = read_sources(args.corpus_dir)
    sources = divide(everything, args)
    mixtures = plan(
        sources,
        degrees=args.degrees,
        snr=args.snr,
        train_clips=args.train_clips,
        valid_clips=args.valid_clips,
        test_clips=args.test_clips,
        seed=args.seed,
    )
    work = partial(render, datadir=datadir, seconds=args.seconds)
    clips: dict[str, list[Clip]] = {}
    made = parallel_map(work, mixtures, args.nj, "mixtures", unit="clip")
    for mixture, clip in zip(mixtures, made, strict=True):
        clips.setdefault(f"polyphony/{mixture.split}", []).append(clip)
    for split, of_split in clips.items():
        writer.add(split, of_split, known_to_exist=True)
    heard = [
        (Clip(source.key, source.path, "", source.recording), part)
        for part, split in enumerate(("train", "valid"))
        for source in sources[split]
    ]
    parts = {clip.key: part for clip, part in heard}
    write_pretrain(writer, (clip for clip, _ in heard), parts)
    rows = [(mixture.key, part) for mixture in mixtures for part in mixture.parts]
    write_csv(
        datadir / "mixtures.csv",
        COLUMNS,
        (
            (
                key,
                part.source.key,
                part.source.recording,
                part.source.label,
                f"{part.snr:.2f}",
            )
            for key, part in rows
        ),
    )
    names: dict[str, str] = {}
    for split in find_splits(args.corpus_dir):
        names |= read_label_names(args.corpus_dir / split.split("/")[0])
    words = sorted({part.source.label for _, part in rows})
    writer.classes("polyphony", {w: names.get(w, label_name(w)) for w in words})
    kept = {source.label for of_split in sources.values() for source in of_split}
    gone = sorted({source.label for source in everything} - kept)
    counts = ", ".join(f"{len(sources[split])} for {split}" for split in SPLITS)
    writer.note(
        f"polyphony: {args.seconds:g} s mixtures of clips of {args.corpus_dir.name} "
        f"({counts}), seed {args.seed}, {args.snr[0]:g} to {args.snr[1]:g} dB"
    )
    if gone:
        writer.note(
            f"polyphony: {len(gone)} of {len(gone) + len(kept)} labels have too few "
            f"recordings for train and test and are left out: {' '.join(gone)}"
        )
    tests = [f"polyphony/degree_{degree}" for degree in args.degrees]
    ends = "polyphony/train", "polyphony/valid"
    writer.finish([Downstream("polyphony", "multi_label", *ends, tests)])
    logging.info("%d mixtures", len(mixtures))


if __name__ == "__main__":
    run_main(main)
