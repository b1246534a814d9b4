"""ESPnet's dataset with errors that name the clip, and the lists of clip ids."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from espnet2.train.dataset import ESPnetDataset

from espnet2_sslam.tasks.preprocess import ClipError
from espnet2_sslam.units import SAMPLE_RATE


class ClipDataset(ESPnetDataset):
    """ESPnetDataset that demands 16 kHz and names the clip in every error."""

    def __getitem__(self, uid: str) -> tuple[str, dict[str, Any]]:
        """Read and pre-process one clip.

        Raises:
            ClipError: if it cannot be read or used, in one line.
        """
        try:
            result = super().__getitem__(uid)
        except ClipError:
            raise
        except (OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
            raise ClipError(
                f"clip {uid} cannot be read ({_first_line(error)}): restore the file "
                "or prepare the data again (stages 1 and 2)"
            ) from error
        for loader in self.loader_dict.values():
            rate = getattr(loader, "rate", None)
            if rate not in (None, SAMPLE_RATE):
                raise ClipError(
                    f"clip {uid} has {rate} Hz, {SAMPLE_RATE} Hz are needed: format "
                    "the data (stage 2)"
                )
        return result

    def check_keys(self, keys: Collection[str]) -> None:
        """Raise ValueError unless every list holds every clip."""
        for name, loader in self.loader_dict.items():
            known = loader.keys()
            missing = [key for key in keys if key not in known]
            if missing:
                raise ValueError(
                    f"{self.debug_info[name][0]} lacks {len(missing)} of {len(keys)} "
                    f"clips, the first is {missing[0]}: prepare the data again "
                    "(stages 1 and 2)"
                )


def read_keys(path: str | Path) -> list[str]:
    """Return the clip ids of a list (first column).

    Raises:
        ValueError: for an empty list or an id that occurs twice.
    """
    with open(path, encoding="utf-8") as lines:
        keys = [line.split(maxsplit=1)[0] for line in lines if line.strip()]
    if not keys:
        raise ValueError(f"{path} is empty: prepare the data again (stages 1 and 2)")
    if len(set(keys)) != len(keys):
        seen: set[str] = set()
        twice = next(k for k in keys if k in seen or seen.add(k))
        raise ValueError(f"{path} holds the clip {twice} twice: make the ids unique")
    return keys


def key_file(paths: Sequence[Sequence[str]], shape_files: Sequence[str]) -> str:
    """Return the list that says which clips are used."""
    return shape_files[0] if shape_files else paths[0][0]


def read_labels(data: Sequence[Sequence[str]], keys: Sequence[str]) -> list[list[str]]:
    """Return the labels of each clip from the list named "label" (`<id> <label> ...`).

    Raises:
        ValueError: if there is no such list, or it lacks a clip.
    """
    paths = [path for path, name, _ in data if name == "label"]
    if not paths:
        raise ValueError(
            "balanced clips need labels: add <dir>/text,label,text to "
            "--train_data_path_and_name_and_type"
        )
    labels: dict[str, list[str]] = {}
    shared: dict[str, list[str]] = {}  # one list for all clips with the same labels
    with open(paths[0], encoding="utf-8") as lines:
        for line in lines:
            key, _, text = line.strip().partition(" ")
            if key:
                if text not in shared:
                    shared[text] = text.split()
                labels[key] = shared[text]
    missing = [key for key in keys if key not in labels]
    if missing:
        raise ValueError(
            f"{paths[0]} lacks {len(missing)} clips, the first is {missing[0]}: "
            "prepare the data again (stages 1 and 2)"
        )
    return [labels[key] for key in keys]


def read_weights(path: str | Path, keys: Sequence[str]) -> np.ndarray:
    """Return the weight of each clip, (N,) float64, from a list of `<id> <weight>`.

    Raises:
        ValueError: if it lacks a clip, or a weight is no number from 0 up.
    """
    weights = np.full(len(keys), np.nan)
    places = {key: place for place, key in enumerate(keys)}
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            key, _, value = line.strip().partition(" ")
            place = places.get(key)
            if place is None:
                continue
            try:
                weights[place] = float(value)
            except ValueError:
                weights[place] = -1.0
            if not 0 <= weights[place] < np.inf:
                raise ValueError(
                    f"{path}, line {number}: the weight of {key} is {value!r}, a "
                    "number from 0 up is needed"
                )
    missing = np.flatnonzero(np.isnan(weights))
    if len(missing):
        raise ValueError(
            f"{path} lacks {len(missing)} clips, the first is {keys[missing[0]]}: "
            "prepare the data again (stages 1 and 2)"
        )
    return weights


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its name."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
