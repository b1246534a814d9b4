"""From lists of clips to batches: lists, one clip, batches of a pass, epochs.

Errors name the clip or the list in one line. Every draw (order, crop, balanced choice)
is keyed by the seed and what it is for, so that a resumed training repeats it.
"""

import argparse
import errno
import functools
import hashlib
import logging
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from functools import lru_cache
from multiprocessing import queues
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from espnet2.iterators.abs_iter_factory import AbsIterFactory
from espnet2.train.collate_fn import CommonCollateFn
from espnet2.train.dataset import ESPnetDataset
from torch.utils.data import DataLoader

from espnet2_sslam.audio import count_samples, read_part
from espnet2_sslam.config import RESAMPLERS, check_values, to_float
from espnet2_sslam.corpus import RESAMPLER_FILE, table_lines
from espnet2_sslam.corpus.fbank import ark_shape, read_ark_rows
from espnet2_sslam.tasks.saving import SIGNALS
from espnet2_sslam.units import FRAME_LENGTH, FRAME_SHIFT, NUM_MEL_BINS, SAMPLE_RATE

PREPARE = "prepare the data again"
LOST = "not in the list any more"  # place of a clip, see `lost_clips`
NOT_THE_CLIPS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # fault, but the machine's
HEADER_THREADS = 16  # headers are read at once: network disks are slow to answer


class ClipError(ValueError):
    """A clip that cannot be used; one line that names it.

    A DataLoader worker hands an error on with its whole traceback as the message: only
    the line that was meant for the user is kept.
    """

    def __init__(self, message: str):
        last = message.strip().splitlines()[-1]
        super().__init__(last.rsplit(f"{type(self).__name__}: ", 1)[-1])


class LabelError(ClipError):
    """Labels that do not fit: the lists are wrong, not the clip."""


# ---------------------------------------------------------------------------- lists


def check_data_files(args: argparse.Namespace, required: Iterable[str]) -> None:
    """Refuse lists that are missing, empty or not of all required kinds.

    Raises:
        ValueError: naming the list or the option.
    """
    remedies: dict[str, str] = {}
    for part in ("train", "valid"):
        option = f"{part}_data_path_and_name_and_type"
        names = [name for _, name, _ in getattr(args, option)]
        missing = [name for name in required if name not in names]
        if missing:
            raise ValueError(
                f"--{option} gives {', '.join(names) or 'nothing'}, but "
                f"{', '.join(missing)} is needed: repeat the option for each, as in "
                "DIR/wav.scp,speech,sound and DIR/text,label,text"
            )
        paths = [path for path, *_ in getattr(args, option)]
        for path in [*paths, *getattr(args, f"{part}_shape_file")]:
            remedies[path] = "prepare the data as 16 kHz mono first"
    if args.sample_weights is not None:
        remedies[args.sample_weights] = "make it, or leave --sample_weights out"
    for path, remedy in remedies.items():
        if not Path(path).is_file() or not Path(path).stat().st_size:
            state = "is empty" if Path(path).is_file() else "does not exist"
            raise ValueError(f"{path} {state}: {remedy}")
    for part in ("train", "valid"):
        for path, _, kind in getattr(args, f"{part}_data_path_and_name_and_type"):
            if not kind.startswith("text"):
                refuse_commands(path)


def refuse_commands(path: str | Path) -> None:
    """Refuse a list with a `|`: ESPnet's readers of Kaldi files would run a command.

    Raises:
        ValueError: naming the line.
    """
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            place = line.partition(b" ")[2].strip()
            if place.startswith(b"|") or place.endswith(b"|"):
                raise ValueError(
                    f"{path}, line {number}: commands are not run: write their output "
                    "to a file first"
                )


def check_resampler(encoder_conf: Mapping[str, Any], paths: Iterable[str]) -> None:
    """Refuse audio that came to 16 kHz in another way than the encoder is told.

    Args:
        encoder_conf: Options of the encoder.
        paths: Lists of a dump; others say nothing about it.

    Raises:
        ValueError: naming the list and both ways.
    """
    expected = encoder_conf.get("resampler", RESAMPLERS[0])
    for path in paths:
        record = Path(path).with_name(RESAMPLER_FILE)
        resampler = expected
        if record.is_file():
            resampler = record.read_text(encoding="utf-8").strip()
        if resampler != expected:
            raise ValueError(
                f"{path} was resampled by {resampler}, encoder_conf says {expected}: "
                f"{PREPARE}, or set encoder_conf resampler={resampler}"
            )


def key_file(data: Sequence[Sequence[str]], shape_files: Sequence[str]) -> str:
    """Return the list that says which clips are used."""
    return shape_files[0] if shape_files else data[0][0]


def read_keys(path: str | Path) -> list[str]:
    """Return the clip ids of a list (first column).

    Raises:
        ValueError: for an empty list or an id that occurs twice.
    """
    keys = [key for _, key, _ in table_lines(path)]
    if not keys:
        raise ValueError(f"{path} is empty: {PREPARE}")
    if len(set(keys)) != len(keys):
        [(twice, _)] = Counter(keys).most_common(1)
        raise ValueError(f"{path} holds the clip {twice} twice: make the ids unique")
    return keys


def read_labels(data: Sequence[Sequence[str]], keys: Sequence[str]) -> list[list[str]]:
    """Return the labels of each clip from the list named "label" (`<id> <label> ...`).

    Raises:
        ValueError: if there is no such list, or it lacks a clip.
    """
    path = next((path for path, name, _ in data if name == "label"), None)
    if path is None:
        raise ValueError(
            "balanced clips need labels: add <dir>/text,label,text to "
            "--train_data_path_and_name_and_type"
        )
    labels: dict[str, list[str]] = {}
    shared: dict[str, list[str]] = {}  # of two million clips most have equal labels
    for _, key, text in table_lines(Path(path)):
        if text not in shared:
            shared[text] = text.split()
        labels[key] = shared[text]
    _refuse_missing(path, [key for key in keys if key not in labels], keys)
    return [labels[key] for key in keys]


def read_weights(path: str | Path, keys: Sequence[str]) -> np.ndarray:
    """Return the weight of each clip, (N,) float64, from a list of `<id> <weight>`.

    Raises:
        ValueError: if it lacks a clip, or a weight is no number from 0 up.
    """
    weights = np.full(len(keys), np.nan)
    rows = {key: row for row, key in enumerate(keys)}
    for number, key, text in table_lines(Path(path)):
        if key not in rows:
            continue
        try:
            weight = float(text)
        except ValueError:
            weight = -1.0
        if not 0 <= weight < np.inf:
            raise ValueError(
                f"{path}, line {number}: the weight of {key} is {text!r}, a number "
                "from 0 up is needed"
            )
        weights[rows[key]] = weight
    without = np.flatnonzero(np.isnan(weights)).tolist()
    _refuse_missing(path, [keys[row] for row in without], keys)
    return weights


def length_list(
    data: Sequence[Sequence[str]], shape_files: Sequence[str] = (), input_size: int = 1
) -> str | None:
    """Return the list of the clips' lengths, if there is one.

    A shape file, or the utt2num_samples (utt2num_frames) beside the list of the audio.
    """
    own, other = "utt2num_samples", "utt2num_frames"
    if input_size != 1:
        own, other = other, own
    path = next(path for path, name, _ in data if name == "speech")
    beside = Path(path).with_name(own)
    lists = [name for name in shape_files if Path(name).name != other]
    lists += [str(beside)] if beside.is_file() else []
    return lists[0] if lists else None


def read_lengths(
    keys: Sequence[str],
    data: Sequence[Sequence[str]],
    shape_files: Sequence[str] = (),
    input_size: int = 1,
) -> np.ndarray:
    """Return the samples (or, of log-mel, frames) of each clip, (N,) int64.

    They are taken from the `length_list`, or else from the headers of all files.

    Raises:
        ValueError: if a list lacks a clip or holds no number, or a header cannot be
            read.
    """
    path, _, kind = next(row for row in data if row[1] == "speech")
    source = length_list(data, shape_files, input_size)
    if source is None:
        changed = Path(path).stat().st_mtime_ns
        return _header_lengths(tuple(keys), path, kind, changed)
    lengths = np.full(len(keys), -1, dtype=np.int64)
    rows: dict[str, int] = {}
    for row, (number, key, text) in enumerate(table_lines(Path(source))):
        if row >= len(keys) or keys[row] != key:  # in another order than the keys
            rows = rows or {key: row for row, key in enumerate(keys)}
            if (row := rows.get(key, -1)) < 0:
                continue
        try:
            lengths[row] = int(text.split(",")[0])
        except ValueError:
            raise ValueError(
                f"{source}, line {number}: the length of {key} is {text!r}, a whole "
                "number is needed"
            ) from None
    without = np.flatnonzero(lengths < 0).tolist()
    _refuse_missing(source, [keys[row] for row in without], keys)
    return lengths


@lru_cache(maxsize=2)  # the options' check and the sampler ask for the same
def _header_lengths(
    keys: tuple[str, ...], path: str, kind: str, changed: int
) -> np.ndarray:
    """Return the lengths (N,) that the headers of the clips' files say.

    Args:
        keys, path, kind: Of the clips and their list.
        changed: When the list was, in ns.
    """
    if kind not in ("sound", "kaldi_ark"):
        raise ValueError(
            f"the lengths of the clips in {path} are not known: give them with "
            "--train_shape_file and --valid_shape_file (`<id> <length>` a line)"
        )
    logging.info(
        f"{path}: reading the lengths of {len(keys)} clips from their headers (a list "
        "of them as shape file saves that)"
    )
    places = {key: place for _, key, place in table_lines(path)}
    _refuse_missing(path, [key for key in keys if key not in places], keys)

    def length(key: str) -> int:
        try:
            if kind == "sound":
                return count_samples(places[key])
            shape = ark_shape(places[key])
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"clip {key} cannot be read ({error}): restore the file or {PREPARE}"
            ) from None
        if shape is None:
            raise ValueError(
                f"clip {key}: {places[key]} is no matrix of floats: give the lengths "
                "with --train_shape_file and --valid_shape_file"
            )
        return shape[0]

    with ThreadPool(HEADER_THREADS) as pool:
        return np.array(pool.map(length, keys, chunksize=64), dtype=np.int64)


def _refuse_missing(
    path: str | Path, missing: Sequence[str], keys: Collection[str]
) -> None:
    """Refuse a list that lacks some of the clips."""
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} of {len(keys)} clips, the first is "
            f"{missing[0]}: {PREPARE}"
        )


# -------------------------------------------------------------------------- one clip


class Crop(NamedTuple):
    """A part of a recording, in samples (or frames of log-mel).

    `listed` is the length of the recording that its list says, at least.
    """

    uid: str
    start: int
    size: int
    listed: int = 0


class Whole(NamedTuple):
    """A clip, of which the pre-processor chooses a part, and its `listed` length."""

    uid: str
    listed: int


class BadClip(NamedTuple):
    """A clip that cannot be used, and why; silence in its form."""

    file: str
    reason: str
    silence: dict[str, np.ndarray]


class ClipDataset(ESPnetDataset):
    """ESPnetDataset that reads only what is needed and names the clip in every error.

    Audio must have 16 kHz. Of the clips' `speech` the part that a `Crop` names is read,
    or the one that the pre-processor's `place(uid, length) -> (start, end)` chooses.
    With `skip_bad` a clip that cannot be used becomes a `BadClip`.
    """

    def __init__(self, *args: Any, skip_bad: bool = False, **kwargs: Any):
        self.skip_bad = skip_bad
        try:
            super().__init__(*args, **kwargs)
        except Exception as error:  # of ESPnet's many readers of lists
            if isinstance(error, (ValueError, OSError)):
                raise
            raise ValueError(
                f"{' '.join(str(error).split())}: correct the list or {PREPARE}"
            ) from error

    def __getitem__(self, uid: Any) -> tuple[str, Any]:
        """Read and pre-process one clip, `Crop` or `Whole`.

        Raises:
            ClipError: if it cannot be read or used, in one line.
            OSError: The machine is at its limits.
        """
        name = uid if isinstance(uid, str) else uid.uid
        try:
            return self._load(name, uid)
        except LabelError:
            raise
        except ClipError as error:
            if not self.skip_bad:
                raise
            place = location(self.loader_dict["speech"], name) or "speech"
            reason = str(error).removeprefix(f"clip {name} ")
            preprocess: Any = self.preprocess
            size = uid.size if isinstance(uid, Crop) else None
            silence = self._as_numbers(preprocess.silence(size))
            return name, BadClip(place, reason, silence)

    def _load(self, uid: str, wanted: Any) -> tuple[str, dict[str, Any]]:
        """Read and pre-process one clip, or the part of it that is `wanted`."""
        choose: Any = getattr(self.preprocess, "place", None)
        if isinstance(wanted, Crop):
            choose = _fixed_place(wanted)
        elif isinstance(wanted, Whole):
            choose = _checked_place(wanted, choose)
        try:
            data = {name: self._read(name, uid, choose) for name in self.loader_dict}
        except (ClipError, MemoryError):
            raise
        except Exception as error:  # whatever the reader of the format raises
            place = location(self.loader_dict["speech"], uid) or ""
            if place.startswith(LOST):
                raise ClipError(f"clip {uid} is {LOST}") from error
            error = _cause(place) or error
            reason = [type(error).__name__, *str(error).strip().splitlines()[:1]]
            raise ClipError(
                f"clip {uid} cannot be read ({': '.join(reason)}): restore the file or "
                f"{PREPARE}"
            ) from error
        if self.preprocess is not None:
            data = self.preprocess(uid, data)
        return uid, self._as_numbers(data)

    def _as_numbers(self, data: dict[str, Any]) -> dict[str, Any]:
        dtypes = {"f": self.float_dtype, "i": self.int_dtype}
        return {
            name: value.astype(dtypes.get(value.dtype.kind, value.dtype), copy=False)
            for name, value in data.items()
        }

    def _read(
        self, name: str, uid: str, choose: Callable[[str, int], tuple[int, int]] | None
    ) -> Any:
        """Read one kind of data of a clip; of speech the chosen part."""
        loader: Any = self.loader_dict[name]
        if name != "speech" or choose is None:
            value = loader[uid]
            self._check_rate(uid, getattr(loader, "rate", None))
            return value

        short: list[ClipError] = []  # said after the rate, which may be its cause

        def part(length: int) -> tuple[int, int]:
            try:
                return choose(uid, length)
            except ClipError as error:
                short.append(error)
                return 0, 0

        kind = self.debug_info[name][1]
        place = location(loader, uid)
        if kind == "sound" and place is not None:
            value, rate = read_part(place, part)
            self._check_rate(uid, rate)
            if short:
                raise short[0]
            return value
        value = read_ark_rows(place, part) if kind == "kaldi_ark" and place else None
        if value is None:
            value = loader[uid]
            self._check_rate(uid, getattr(loader, "rate", None))
            start, end = part(len(value))
            value = value[start:end]
        if short:
            raise short[0]
        return value

    @staticmethod
    def _check_rate(uid: str, rate: int | None) -> None:
        if rate not in (None, SAMPLE_RATE):
            raise ClipError(
                f"clip {uid} has {rate} Hz, {SAMPLE_RATE} Hz are needed: prepare "
                "the data as 16 kHz mono"
            )

    def check_keys(self, keys: Collection[str]) -> None:
        """Raise ValueError unless every list holds every clip."""
        for name, loader in self.loader_dict.items():
            path, known = self.debug_info[name][0], loader.keys()
            if next(iter(known), "").startswith("\ufeff"):  # ESPnet keeps it in the id
                raise ValueError(
                    f"{path} begins with a byte order mark: save it as plain UTF-8"
                )
            _refuse_missing(path, [key for key in keys if key not in known], keys)


def _check_length(uid: str, length: int, least: int) -> None:
    if length < least:
        raise ClipError(
            f"clip {uid} has {length} samples or frames, the list of lengths says at "
            f"least {least}: {PREPARE}"
        )


def _fixed_place(crop: Crop) -> Callable[[str, int], tuple[int, int]]:
    """Return the choice of a crop's place."""

    def place(uid: str, length: int) -> tuple[int, int]:
        _check_length(uid, length, max(crop.size, crop.listed))
        first = min(crop.start, length - crop.size)
        return first, first + crop.size

    return place


def _checked_place(
    clip: Whole, choose: Callable[[str, int], tuple[int, int]] | None
) -> Callable[[str, int], tuple[int, int]]:
    """Return a choice that refuses a file which is shorter than listed."""

    def place(uid: str, length: int) -> tuple[int, int]:
        _check_length(uid, length, clip.listed)
        return choose(uid, length) if choose else (0, length)

    return place


def _cause(place: str) -> OSError | None:
    """What the system says of a file that a reader could not read.

    libsndfile says "System error" of a missing one.

    Raises:
        OSError: It is the machine that is at its limits.
    """
    if ":" in place and not os.path.exists(place):  # <ark>:<offset>
        place = place.rpartition(":")[0]
    try:
        with open(place or os.devnull, "rb"):
            return None
    except OSError as error:
        if error.errno in NOT_THE_CLIPS:
            raise
        return error


def location(loader: Any, uid: str) -> str | None:
    """Return where ESPnet's reader finds a clip: `<file>`, or `<ark>:<offset>`."""
    table = getattr(loader, "loader", None)
    table = getattr(table, "data", getattr(table, "_dict", {}))
    place = table.get(uid) if isinstance(table, Mapping) else None
    return place if isinstance(place, str) else None


class ClipPreprocessor:
    """Make a clip ready for the model, the same way in every run and worker.

    The place of a crop is drawn from a generator keyed by (seed, epoch, clip id): it
    differs between epochs and does not depend on workers, ranks or resuming.

    Args:
        train: crop at a random place (True), or keep the start of the clip.
        max_samples: longer clips are cut to so many samples (16 kHz); None keeps all.
            For log-mel input the limit is max_samples // FRAME_SHIFT frames.
        seed: first part of the key.
        class_list: labels in the order of the label vector; None for no labels.
        single_label: demand exactly one label per clip (multi-class).
        input_size: 1 for waveforms, 128 for un-normalised log-mel frames.

    Raises:
        ValueError: for a class list with duplicates or another input_size.
    """

    def __init__(
        self,
        train: bool,
        *,
        max_samples: int | None = None,
        seed: int = 0,
        class_list: Sequence[str] | None = None,
        single_label: bool = False,
        input_size: int = 1,
    ):
        if input_size not in (1, NUM_MEL_BINS):
            raise ValueError(
                f"input_size must be 1 (waveform) or {NUM_MEL_BINS} (log-mel), got "
                f"{input_size}"
            )
        if max_samples is not None and max_samples < FRAME_LENGTH:
            raise ValueError(
                f"max_samples must be {FRAME_LENGTH} (25 ms) or more, got {max_samples}"
            )
        self.train = train
        self.max_samples = max_samples
        self.seed = seed
        self.single_label = single_label
        self.input_size = input_size
        self.epoch = 0
        self.classes: dict[str, int] | None = None
        if class_list is not None:
            self.classes = {label: index for index, label in enumerate(class_list)}
            if len(self.classes) != len(class_list):
                raise ValueError("the class list holds a label twice: make it unique")

    def set_epoch(self, epoch: int) -> None:
        """Key the coming draws to this epoch."""
        self.epoch = epoch

    def __call__(self, uid: str, data: dict[str, Any]) -> dict[str, np.ndarray]:
        """Return the arrays of one clip: speech (N,) or (T, 128), label (C,).

        Raises:
            ClipError: naming the clip, for stereo, empty, too short or non-finite
                audio, a wrong number type, or a label that is not in the class list.
        """
        result = {}
        if "speech" in data:
            result["speech"] = self._cut(uid, self._to_float(uid, data["speech"]))
        if "label" in data:
            result["label"] = self._label_vector(uid, data["label"].split())
        return result

    def _to_float(self, uid: str, speech: np.ndarray) -> np.ndarray:
        """Return float32 numbers, audio (N,) in [-1, 1] or log-mel (T, 128)."""
        is_audio = self.input_size == 1
        right = speech.ndim == 1 if is_audio else speech.shape[1:] == (NUM_MEL_BINS,)
        if not right:
            form = "mono audio (N,)" if is_audio else "log-mel (T, 128)"
            raise ClipError(
                f"clip {uid} has shape {tuple(speech.shape)}, {form} is needed: "
                "prepare the data as 16 kHz mono, or set --input_size"
            )
        name = f"clip {uid}"
        try:
            if not is_audio and speech.dtype.kind != "f":
                raise ValueError(f"{name}: need real numbers, got {speech.dtype}")
            speech = to_float(speech, name)
            if is_audio and len(speech):
                check_values(float(speech.min()), float(speech.max()), name)
            elif not np.isfinite(speech).all():
                raise ValueError(f"{name}: not finite: NaN or infinite values")
        except ValueError as error:
            raise ClipError(f"{error}; take it out of the lists or {PREPARE}") from None
        return speech

    def silence(self, size: int | None = None) -> dict[str, np.ndarray]:
        """Return the arrays of a clip without sound or labels, by default 1 s long.

        Args:
            size: Samples, or frames of log-mel.
        """
        shape: tuple[int, ...] = (size or self.max_samples or SAMPLE_RATE,)
        if self.input_size != 1:
            shape = (size or max(shape[0] // FRAME_SHIFT, 1), NUM_MEL_BINS)
        result = {"speech": np.zeros(shape, dtype=np.float32)}
        if self.classes is not None:
            result["label"] = np.zeros(len(self.classes), dtype=np.float32)
        return result

    def place(self, uid: str, length: int) -> tuple[int, int]:
        """Return which part of a clip is used, (start, end) in samples or frames."""
        limit = self.max_samples
        if self.input_size != 1 and limit is not None:
            limit = max(limit // FRAME_SHIFT, 1)
        if limit is None or length <= limit:
            return 0, length
        start = 0
        if self.train:
            digest = hashlib.blake2b(uid.encode(), digest_size=8).digest()
            key = [self.seed, self.epoch, int.from_bytes(digest, "big")]
            start = int(np.random.default_rng(key).integers(length - limit + 1))
        return start, start + limit

    def _cut(self, uid: str, speech: np.ndarray) -> np.ndarray:
        """Refuse a clip that is too short, cut one that is too long."""
        audio = self.input_size == 1
        unit, smallest = ("samples", FRAME_LENGTH) if audio else ("frames", 1)
        if len(speech) < smallest:
            raise ClipError(
                f"clip {uid} has {len(speech)} {unit}, {smallest} (25 ms) are needed: "
                f"take it out of the lists or {PREPARE}"
            )
        start, end = self.place(uid, len(speech))
        return speech[start:end]

    def _label_vector(self, uid: str, labels: list[str]) -> np.ndarray:
        """Return the multi-hot vector (C,) of a clip's labels."""
        if self.classes is None:
            raise LabelError(f"clip {uid} has labels but no class list: --class_list")
        if self.single_label and len(labels) != 1:
            raise LabelError(
                f"clip {uid} has {len(labels)} labels, exactly one is needed: correct "
                "its line in text, or train with task multi_label"
            )
        unknown = [label for label in labels if label not in self.classes]
        if unknown:
            raise LabelError(
                f"clip {uid} has the label {unknown[0]}, which the class list lacks: "
                "correct its line in text or the class list"
            )
        vector = np.zeros(len(self.classes), dtype=np.float32)
        vector[[self.classes[label] for label in labels]] = 1.0
        return vector

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}(train={self.train}, max_samples={self.max_samples})"


# [(id, arrays)] -> ids, {speech (B, N) or (B, T, 128) padded with zeros, speech_lengths
# (B,), label (B, C)}
collate_clips = CommonCollateFn(float_pad_value=0.0, not_sequence=["label"])


# -------------------------------------------------------------------------- batches


def batches_per_pass(
    num_clips: int,
    batch_size: int,
    *,
    train: bool,
    drop_last: bool = False,
    min_batch: int = 1,
) -> int:
    """Return into how many batches of at least min_batch clips one pass is cut.

    Clips left over are spread over the batches, so that no batch is small. In training
    that makes num_clips // batch_size batches of batch_size clips or a few more, as
    ESPnet's batch_type "unsorted" (drop_last: exactly batch_size clips, the rest is
    left out); in validation batches of at most batch_size, as far as min_batch allows.

    Raises:
        ValueError: if a batch would be smaller than min_batch.
    """
    if batch_size < min_batch:
        raise ValueError(
            f"--batch_size {batch_size} is too small: all ranks together need "
            f"{min_batch} clips per batch; raise it (it counts all ranks)"
        )
    smallest = batch_size if train and drop_last else min_batch
    if num_clips < smallest:
        raise ValueError(
            f"{num_clips} clips are too few for a batch of {smallest}: use more clips, "
            "fewer ranks or a smaller --batch_size"
        )
    if train:
        return max(num_clips // batch_size, 1)
    return min(-(-num_clips // batch_size), num_clips // min_batch)


class ClipSampler:
    """Cut one pass over the clips into batches.

    In training each pass is a new permutation keyed by (seed, pass), the same on every
    rank; in validation the order is that of the list. A batch is dealt out to the
    ranks, so that each clip is used exactly once per pass.

    With weights a pass is `num_samples` different clips, those of rare classes more
    often, as the authors sample AudioSet (200,000 clips per "epoch";
    ta012/SSLAM@0a3c0ff, mae_image_dataset.py, line 265).

    Args:
        keys: clip ids; kept as one byte array (2 million clips: about 50 MB).
        batch_size: clips per batch, over all ranks.
        train: shuffle (True), or keep the order.
        seed: with the number of the pass, fixes the order.
        drop_last: training only: leave out what does not fill a batch.
        min_clips_per_rank: clips that every rank must get of every batch.
        rank, world_size: this process, and how many there are.
        weights: (N,) of the clips, training only; a clip of weight 0 is never drawn.
        num_samples: clips per pass, where there are weights.
        clips_per_pass: where there are none; by default each clip once.
        lengths: (N,) of the clips by their list, to compare the files with.

    Raises:
        ValueError: if there are too few clips for the batches, ranks or num_samples.
    """

    def __init__(
        self,
        keys: Sequence[str],
        batch_size: int,
        *,
        train: bool,
        seed: int = 0,
        drop_last: bool = False,
        min_clips_per_rank: int = 1,
        rank: int = 0,
        world_size: int = 1,
        weights: np.ndarray | None = None,
        num_samples: int = 0,
        clips_per_pass: int | None = None,
        lengths: np.ndarray | None = None,
    ):
        self.lengths = lengths
        self.keys = np.array([key.encode() for key in keys], dtype=np.bytes_)
        self.batch_size = batch_size
        self.train = train
        self.seed = seed
        self.drop_last = drop_last and train
        self.rank, self.world_size = rank, world_size
        self.clips_per_pass, self.log_weights = clips_per_pass or len(keys), None
        if weights is not None:
            usable = int(np.count_nonzero(weights > 0))
            if not 0 < num_samples <= usable:
                raise ValueError(
                    f"{num_samples} balanced clips per epoch cannot be drawn from "
                    f"{usable} labelled clips: give a number from 1 to {usable}"
                )
            assert len(weights) == len(keys)
            with np.errstate(divide="ignore"):
                self.log_weights = np.log(np.asarray(weights, dtype=np.float64))
            self.clips_per_pass = num_samples
        self.num_batches = batches_per_pass(
            self.clips_per_pass,
            batch_size,
            train=train,
            drop_last=drop_last,
            min_batch=min_clips_per_rank * world_size,
        )

    def order(self, number: int) -> Any:
        """Return the indices of the clips of one pass, in order."""
        if not self.train:
            return np.arange(len(self.keys))
        generator = np.random.default_rng([self.seed, number])
        if self.log_weights is None:
            return generator.permutation(len(self.keys))
        # The Gumbel trick: drawing without replacement in one sort, for any number of
        # clips (torch.multinomial takes at most 2 ** 24).
        scores = self.log_weights + generator.gumbel(size=len(self.keys))
        drawn = np.argpartition(-scores, self.clips_per_pass - 1)[: self.clips_per_pass]
        return generator.permutation(drawn)

    def batch(self, order: Any, index: int) -> list[Any]:
        """Return this rank's clips of one batch of a pass: ids, or `Whole`."""
        if self.drop_last:
            start, end = index * self.batch_size, (index + 1) * self.batch_size
        else:
            start = index * len(order) // self.num_batches
            end = (index + 1) * len(order) // self.num_batches
        mine = order[start:end][self.rank :: self.world_size]
        keys = [key.decode() for key in self.keys[mine]]
        if self.lengths is None:
            return keys
        return [*map(Whole, keys, self.lengths[mine].tolist())]

    def generate(self, number: int) -> list[list[Any]]:
        """Return all batches of one pass."""
        order = self.order(number)
        return [self.batch(order, index) for index in range(self.num_batches)]

    def __len__(self) -> int:
        return self.num_batches

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self.keys)} clips, {self.clips_per_pass} "
            f"per pass in {self.num_batches} batches of about {self.batch_size})"
        )


class EpochIterFactory(AbsIterFactory):
    """Make the batches of each epoch, the same ones after a resume.

    Batches are numbered through all passes: with num_iters_per_epoch I, epoch e takes
    the batches from (e - 1) * I on, so passes go on across epochs. The pre-processor
    learns the epoch (`set_epoch`) with every clip. The workers of a training's batches
    stay from epoch to epoch and die with their parent.

    Args:
        dataset: clip id -> arrays; its `preprocess` may have `set_epoch(epoch)`.
        sampler: batches of a pass.
        num_iters_per_epoch: batches per epoch; None for one pass.
        max_batches: stop after so many batches (plots).
        num_workers: processes that read clips.
        loader_options: other options of the DataLoader.
    """

    def __init__(
        self,
        dataset: Any,
        sampler: ClipSampler,
        *,
        num_iters_per_epoch: int | None = None,
        max_batches: int | None = None,
        num_workers: int = 0,
        **loader_options: Any,
    ):
        self.sampler = sampler
        self.batches_per_epoch = num_iters_per_epoch or len(sampler)
        self.max_batches = max_batches
        if num_workers > 0:
            # of validation they would wait through a whole training epoch
            loader_options["persistent_workers"] = sampler.train
            if sys.platform == "linux":
                # ESPnet's ranks are spawned, and so would be their workers: each would
                # import everything again
                loader_options["multiprocessing_context"] = "fork"
                begin = functools.partial(_begin_worker, os.getpid())
                loader_options["worker_init_fn"] = begin
        self.batches = _CurrentBatches()
        self.loader = DataLoader(
            _OfEpoch(dataset),  # type: ignore[arg-type]  # has what is needed of it
            batch_sampler=self.batches,
            num_workers=num_workers,
            generator=torch.Generator(),
            **loader_options,
        )
        self.within = (0, 0)

    def begin_within(self, epoch: int, batches: int) -> None:
        """Let one epoch begin behind its first `batches`, which are done."""
        self.within = (epoch, batches)

    def build_iter(self, epoch: int, shuffle: bool | None = None) -> "EpochBatches":
        """Return the batches of one epoch (counted from 1)."""
        first = (epoch - 1) * self.batches_per_epoch
        last = first + self.batches_per_epoch
        if self.max_batches is not None:
            last = min(last, first + self.max_batches)
        if self.within[0] == epoch:
            first += self.within[1]
        return EpochBatches(self, _BatchRange(self.sampler, epoch, first, last))


class EpochBatches:
    """The batches of one epoch, from the loader that all epochs share."""

    def __init__(self, factory: EpochIterFactory, batch_sampler: "_BatchRange"):
        self.factory, self.batch_sampler = factory, batch_sampler

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Any]:
        self.factory.batches.current = self.batch_sampler
        # What a new loader draws, and one with old workers does not: the model's draws
        # come after it, and must not depend on whether a training was resumed.
        torch.empty((), dtype=torch.int64).random_()
        return iter(self.factory.loader)


class _CurrentBatches:
    """What the loader takes for its batches: those of the epoch that is begun."""

    current: "_BatchRange"

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self.current)

    def __len__(self) -> int:
        return len(self.current)


class _OfEpoch:
    """A dataset whose clips come with their epoch: a worker outlives epochs."""

    def __init__(self, dataset: Any):
        self.dataset = dataset
        preprocess: Any = getattr(dataset, "preprocess", None)
        self.set_epoch = getattr(preprocess, "set_epoch", None)

    def __getitem__(self, clip: tuple[int, Any]) -> Any:
        if self.set_epoch is not None:
            self.set_epoch(clip[0])
        return self.dataset[clip[1]]


def _begin_worker(parent: int, worker: int) -> None:
    """Leave signals to the training, which still needs the worker's batches.

    Slurm and a terminal send them to every process of a group. A training ends its
    workers by SIGTERM, too: only that one counts. They die with it. A batch that cannot
    be handed over (no shared memory is left) ends it: the training would wait for ever.
    """
    queues.Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore
    for number in set(SIGNALS) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_leave_with, args=[parent], daemon=True).start()


def _end_worker(error: Exception, batch: Any) -> None:
    reason = " ".join(str(error).split())
    sys.stderr.write(f"error: a batch cannot be handed to the training: {reason}\n")
    sys.stderr.flush()
    os._exit(1)


def _leave_with(parent: int) -> None:
    """End when the training says so, or is gone.

    PyTorch's own watch takes whoever is the parent at its start for the training.
    """
    while os.getppid() == parent:
        told = signal.sigtimedwait({signal.SIGTERM}, 1.0)
        if told and told.si_pid == parent:
            break
    os._exit(0)


class _BatchRange:
    """The batches first, ..., last - 1 of all passes, made one by one.

    Each is a list of (epoch, clip); a list of an epoch's batches would hold two million
    strings.
    """

    def __init__(self, sampler: ClipSampler, epoch: int, first: int, last: int):
        self.sampler, self.epoch, self.first, self.last = sampler, epoch, first, last

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[Any]]:
        current, order = None, None
        for number in range(self.first, self.last):
            passes, index = divmod(number, len(self.sampler))
            if passes != current:
                current, order = passes, self.sampler.order(passes)
            yield [(self.epoch, clip) for clip in self.sampler.batch(order, index)]
