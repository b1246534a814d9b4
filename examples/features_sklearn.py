#!/usr/bin/env python3
"""Classify features of `sslam embed` with scikit-learn: a quick look at a labelled set.

The class of a clip is the name of its folder. Clips of one recording are never in both
halves of a split: a test on the recording a classifier was trained on flatters it.

Example, of ESC-50's clips in a folder for each class (1-100032-A-0.wav is a clip of
recording 100032):
sslam embed models/sslam clips/ -o features.npz
python examples/features_sklearn.py features.npz --recording "^[0-9]-(.+?)-"
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from espnet2_sslam.bin.cli import run_main


def recording_of(stem: str, pattern: str) -> str:
    """The recording of a file name without its ending: the pattern's first group."""
    match = re.search(pattern, stem)
    if match is None:
        raise ValueError(f"--recording {pattern!r} does not match the file name {stem}")
    return match.group(match.re.groups and 1)


def predict(
    features: np.ndarray, classes: np.ndarray, recordings: np.ndarray, folds: int
) -> np.ndarray:
    """Classes (N,) of the clips, each by a classifier that knows no such recording."""
    fewest = min(len(set(recordings[classes == name])) for name in set(classes))
    if len(set(classes)) < 2 or fewest < folds:
        raise ValueError(
            f"need two classes of at least {folds} recordings each (--folds), got "
            f"{len(set(classes))}, the smallest of {fewest}"
        )
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    splits = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    predicted = cross_val_predict(
        model, features, classes, groups=recordings, cv=splits
    )
    return np.asarray(predicted)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the accuracy, of all clips and of each class."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "features", help="npz file of `sslam embed`, a row for each clip"
    )
    parser.add_argument(
        "--recording",
        default=".+",
        metavar="REGEX",
        help="its first group is the recording in a file name (default: all of it)",
    )
    parser.add_argument("--folds", type=int, default=5)
    options = parser.parse_args(arguments)
    with np.load(options.features) as table:
        paths, features = [Path(name) for name in table["ids"]], table["values"]
    classes = np.array([path.parent.name for path in paths])
    names = [recording_of(path.stem, options.recording) for path in paths]
    recordings = np.array(names)
    right = predict(features, classes, recordings, options.folds) == classes
    print(f"{len(paths)} clips, {len(set(names))} recordings, {options.folds} folds")
    print(f"accuracy {right.mean():.3f}, by chance {1 / len(set(classes)):.3f}")
    for name in sorted(set(classes)):
        print(f"  {right[classes == name].mean():.3f} {name}")


if __name__ == "__main__":
    run_main(main)
