"""SSLAM for people who never train: embeddings and labels of any audio."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from espnet2_sslam.audio import AudioError, is_single, source_name
from espnet2_sslam.checkpoint import load_model, save_model
from espnet2_sslam.classifier import Pooling, SSLAMClassifier
from espnet2_sslam.config import check_choice
from espnet2_sslam.encoder import SSLAMEncoder
from espnet2_sslam.inference import plot
from espnet2_sslam.inference.events import ByClass, Event, find_events
from espnet2_sslam.inference.jobs import (
    STEP,
    Backbone,
    EmbedFrames,
    Job,
    PooledClips,
    Windows,
)
from espnet2_sslam.inference.stream import FileResult, reader_threads, stream
from espnet2_sslam.machine import multiplies_bfloat16
from espnet2_sslam.units import FRAME_LENGTH, PATCH_SIZE, SAMPLE_RATE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DTYPES = ("auto", "float32", "bfloat16", "float16")
SERIES = ("frames", "patches", "tokens")  # several rows a clip
POOLINGS = ("mean", "cls", *SERIES)
BATCH_SECONDS = {"cpu": 40.96, "gpu": 655.36}  # on a CPU more is no faster
STEP_SECONDS = STEP / SAMPLE_RATE
STEP_WINDOW = 1.0  # s around a time step that are scored as a clip

Label = tuple[str, float]


class SSLAM:
    """A trained encoder or classifier, ready for audio of any kind.

    Audio is a path, an object open for reading bytes, an array (NumPy or torch; (N,),
    (N, channels) or (channels, N) with at most 8 channels; float in [-1, 1] or int16,
    int32, uint8) with `rate`, a pair (array, rate), or a dictionary {"array": ...,
    "sampling_rate": ...}; of any rate and number of channels. A list holds several
    clips, of any lengths. What comes out for a clip does not depend on the others.

    Threads may share an object; each iterator belongs to one thread.

    Args:
        model: SSLAMEncoder or SSLAMClassifier; moved to `device`, in evaluation mode.
        config: Content of its config.json, of which `save_pretrained` keeps the origin.
        device: "cpu", "cuda", "cuda:1", "mps"; by default the best there is.
        dtype: "float32", "bfloat16" or "float16": of the matrix products (autocast, the
            weights held in it); bfloat16 changes embeddings by about 0.5 % (ViT-Base,
            random weights). "auto": see `choose_dtype`; the attribute says which.
        compile: Compile the transformer at its first batch, which takes a minute.
        batch_seconds: Audio that is encoded at once; bounds the memory.

    Raises:
        ValueError: Another kind of model, or a device or dtype that is not there.
    """

    def __init__(
        self,
        model: SSLAMEncoder | SSLAMClassifier,
        config: dict[str, Any] | None = None,
        *,
        device: str | None = None,
        dtype: str = "auto",
        compile: bool = False,
        batch_seconds: float | None = None,
    ):
        if not isinstance(model, (SSLAMEncoder, SSLAMClassifier)):
            raise ValueError(
                "need an SSLAMEncoder or an SSLAMClassifier, got "
                f"{type(model).__name__}; SSLAM.from_pretrained() loads one"
            )
        check_choice("dtype", dtype, DTYPES)
        if batch_seconds is not None and not batch_seconds > 0:
            raise ValueError(f"batch_seconds must be above 0, got {batch_seconds}")
        self.device = find_device(device)
        self.model = model.to(self.device).eval()
        self.config = dict(config or {})
        self.dtype = choose_dtype(dtype, self.device, speed=compile)
        kind = "cpu" if self.device.type == "cpu" else "gpu"
        self.batch_seconds = batch_seconds or BATCH_SECONDS[kind]
        self._backbone = backbone = Backbone(
            self.encoder, self.device, self.dtype, compile
        )
        self._cut = partial(Windows, backbone.pass_frames, backbone.fixed)
        self._warned = False

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        weights: str = "student",
        device: str | None = None,
        dtype: str = "auto",
        compile: bool = False,
        cache_dir: str | Path | None = None,
        batch_seconds: float | None = None,
        **encoder_options: Any,
    ) -> "SSLAM":
        """Load a model.

        Args:
            source: A folder of `save_pretrained`, a checkpoint of the authors, a
                training folder or its .pth file, a packed .zip or a Hugging Face id;
                see `checkpoint.load_model`.
            revision: Of a Hugging Face id.
            weights: "student" or "teacher" of a pre-training.
            device, dtype, compile, batch_seconds: See the class.
            cache_dir: Where downloads go.
            encoder_options: Options of `SSLAMEncoder` that replace the stored ones,
                as target_frames=1024, or time_shifts=4: `embed` by frames, patches or
                tokens and `tag_frames` have steps of 40 ms then, at 4 times the cost.

        Raises:
            ValueError: What cannot be loaded, and why; see the class as well.
        """
        find_device(device)  # before a large download
        origin = {"revision": revision, "weights": weights, "cache_dir": cache_dir}
        loaded = load_model(source, **origin, **encoder_options)
        return cls(
            loaded.model,
            loaded.config,
            device=device,
            dtype=dtype,
            compile=compile,
            batch_seconds=batch_seconds,
        )

    def __repr__(self) -> str:
        head = f"{len(self.classes)} classes" if self.classes else "no head"
        config = self.encoder.config
        size = f"depth {config.depth}, {config.embed_dim} channels"
        return f"SSLAM({size}, {head}, {self.device}, {self.dtype})"

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write model.safetensors and config.json, which `from_pretrained` reads."""
        return save_model(self.model, folder, self.config.get("origin"))

    @property
    def encoder(self) -> SSLAMEncoder:
        """The encoder, of a classifier too."""
        model = self.model
        return model.encoder if isinstance(model, SSLAMClassifier) else model

    @property
    def is_classifier(self) -> bool:
        """Whether the model has a head, which `tag` needs."""
        return isinstance(self.model, SSLAMClassifier)

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes; None for an encoder alone."""
        model = self.model
        return model.classes if isinstance(model, SSLAMClassifier) else None

    def embed(
        self,
        audio: Any,
        *,
        rate: float | None = None,
        layer: int | str = -1,
        pooling: str = "mean",
        chunk: float | None = None,
        hop: float | None = None,
    ) -> np.ndarray | list[np.ndarray]:
        """Embeddings of one clip, or of a list of clips.

        Args:
            audio: See the class.
            rate: Samples per second of arrays (files know theirs).
            layer: -1 the last block, 1, 2, ... a block's output, 0 the patch
                embedding, "all": one axis more, from 0 to the last.
            pooling: "mean" over the patches, "cls", or "frames": a vector for each
                160 ms / time_shifts (mean over frequency; 8 * D with the encoder's
                freq="concat"). "patches": a vector for each patch, eight for each such
                step, the lowest frequencies first; "tokens": the CLS token before.
            chunk, hop: See `embed_files`.

        Returns:
            A clip: (D,); (T, D) with frames, patches, tokens or chunks. A list: (clips,
            D), or a list of (T, D). With layer="all" (L, D) stands for D.

        Raises:
            AudioError: Audio that cannot be used, in one line.
            ValueError: An option outside its range.
        """
        job = self._embedding(layer, pooling, chunk, hop)
        values = list(self._values(job, audio, rate))
        single = is_single(audio)
        if pooling not in SERIES and chunk is None:
            values = [value[0] for value in values]
            if not single and not values:
                config = self.encoder.config
                shape = (config.num_blocks + 1,) if layer == "all" else ()
                return np.empty((0, *shape, config.embed_dim), np.float32)
            return values[0] if single else np.stack(values)
        return values[0] if single else values

    def tag(
        self, audio: Any, *, rate: float | None = None, top_k: int = 5
    ) -> list[Label] | list[list[Label]]:
        """The `top_k` labels with the highest scores, best first: [(label, score)].

        Args:
            audio: See the class.
            rate: Samples per second of arrays (files know theirs).
            top_k: Labels per clip; all of them if there are fewer.

        Returns:
            Labels of one clip, or for a list of clips a list of these. Scores are in
            0..1: of each label by itself, or with the sum 1 if clips have one label.

        Raises:
            AudioError: Audio that cannot be used, in one line.
            ValueError: The model is no classifier, or top_k below 1.
        """
        if top_k < 1:
            raise ValueError(f"top_k must be 1 or more, got {top_k}")
        job = self._tagging(self._windows(None, None))
        choose = best_labels(self.classes or [], top_k)
        labels = [choose(scores[0]) for scores in self._values(job, audio, rate)]
        return labels[0] if is_single(audio) else labels

    def events(
        self,
        audio: Any,
        *,
        rate: float | None = None,
        threshold: ByClass = 0.5,
        median: ByClass = 0.0,
        min_duration: float = 0.0,
        merge_gap: float = 0.0,
        resolution: float | None = None,
        window: float | None = None,
    ) -> list[Event] | list[list[Event]]:
        """Sounds with onset, offset, label and confidence, by their onsets.

        Args:
            audio: See the class.
            rate: Samples per second of arrays (files know theirs).
            threshold, median, min_duration, merge_gap: See `find_events`.
            resolution, window: Of the time steps, see `tag_frames`.

        Returns:
            Events of one clip, or for a list of clips a list of these.

        Raises:
            AudioError: Audio that cannot be used, in one line.
            ValueError: The model is no classifier, an unknown class, or an option
                outside its range.
        """
        clips = _rated([audio] if is_single(audio) else audio, rate)
        steps = {} if resolution is None else {"resolution": resolution}
        results = self.tag_frames(clips, window=window, **steps)
        classes = self.classes or []
        find = partial(
            find_events,
            classes=classes,
            threshold=threshold,
            median=median,
            min_duration=min_duration,
            merge_gap=merge_gap,
        )
        none = np.empty(0)
        find(np.empty((0, len(classes))), none, none)  # options: before work
        events = [
            find(each.values, each.starts, each.ends) for each in _usable(results)
        ]
        return events[0] if is_single(audio) else events

    def plot(
        self,
        audio: Any,
        picture: str | Path | None = None,
        *,
        rate: float | None = None,
        top_k: int = 5,
        labels: Sequence[str] = (),
        resolution: float | None = None,
        window: float | None = None,
        chunk: float | None = None,
        hop: float | None = None,
        title: str | None = None,
    ) -> "Figure":
        """Draw a clip's spectrogram and above it its labels over time.

        Args:
            audio: One clip, see the class.
            picture: File to write: .png, .svg or .pdf.
            rate: Samples per second of an array (files know theirs).
            top_k: How many labels, those with the highest score anywhere.
            labels: These labels instead.
            resolution, window: Of time steps, see `tag_frames`.
            chunk, hop: Windows instead, see `embed_files`; by default of 10 s beyond
                5 minutes.
            title: By default the file's name.

        Returns:
            The figure of matplotlib, which a notebook shows.

        Raises:
            AudioError: Audio that cannot be used, in one line.
            ValueError: An unknown label, an option outside its range, another suffix,
                or matplotlib is not installed.
        """
        plot.check_picture(picture)
        if top_k < 1:
            raise ValueError(f"top_k must be 1 or more, got {top_k}")
        [clip] = _rated([audio], rate)
        spectrogram, timeline = plot.read_spectrogram(clip), None
        duration = float(spectrogram.edges[-1])
        note = "no labels: this model has no classifier"
        steps = resolution is not None or window is not None
        if chunk is None and not steps and duration > plot.SHORT:
            chunk = plot.CHUNK
        if self.classes:
            step = resolution or STEP_SECONDS
            if chunk is None:
                note = f"every {step:g} s"
                results = self.tag_frames([clip], resolution=step, window=window)
            else:
                note = f"windows of {chunk:g} s every {hop or chunk:g} s"
                results = self.tag_files([clip], chunk=chunk, hop=hop)
            [result] = _usable(results)
            scores = result.values, result.starts, result.ends, self.classes
            timeline = plot.make_timeline(*scores, top_k, duration, labels)
        if title is None:
            title = os.path.basename(source_name(audio, 0))
        figure = plot.draw_timeline(spectrogram, timeline, title, note)
        if picture is not None:
            plot.save_picture(figure, picture)
        return figure

    def embed_files(
        self,
        files: Iterable[Any],
        *,
        layer: int | str = -1,
        pooling: str = "mean",
        chunk: float | None = None,
        hop: float | None = None,
    ) -> Iterator[FileResult]:
        """Embeddings of many files, in their order, as soon as they are there.

        Files are read by threads ahead of the model and encoded in batches of similar
        lengths; the memory depends neither on their number nor on their lengths (but
        on the result of one file). A file that cannot be used has an `error`.

        Args:
            files: Audio of any kind, see the class; any iterable.
            layer, pooling: See `embed`.
            chunk: Seconds of a window; by default the whole clip is one row (in passes
                of the encoder's `max_frames`, as its `forward` does). The last window
                may be shorter; less than 25 ms are left out.
            hop: Seconds from one window to the next, by default `chunk`; if it is
                more, audio between windows is left out.

        Raises:
            ValueError: An option outside its range (at once, not at the first result).
        """
        return self._run(self._embedding(layer, pooling, chunk, hop), files)

    def tag_files(
        self,
        files: Iterable[Any],
        *,
        chunk: float | None = None,
        hop: float | None = None,
    ) -> Iterator[FileResult]:
        """Scores of all classes for many files; see `embed_files` and `tag`."""
        return self._run(self._tagging(self._windows(chunk, hop)), files)

    def tag_frames(
        self,
        files: Iterable[Any],
        *,
        resolution: float | None = None,
        window: float | None = None,
    ) -> Iterator[FileResult]:
        """Scores of all classes for each time step of many files.

        Each step is the score of a window around its middle, as of a clip of that
        length; at the ends of the recording it is shorter. No head of a clip
        classifier was trained for time steps: use scores to rank, or choose thresholds
        on data.

        Args:
            files: Audio of any kind, see the class; any iterable.
            resolution: Seconds of a step: 0.16, or 0.16 divided by 2 to 16; by default
                divided by the encoder's time_shifts. Each step has its own window: the
                cost is window / resolution times that of the recording.
            window: Seconds of the windows, from 0.16 to a whole pass; by default 1.0.

        Raises:
            ValueError: The model is no classifier, or an option outside its range.
        """
        if resolution is None:
            resolution = STEP_SECONDS / self.encoder.config.time_shifts
        parts = round(STEP_SECONDS / resolution) if resolution > 0 else 0
        exact = abs(parts * resolution / STEP_SECONDS - 1) < 1e-3  # 0.0533: a third
        if not (1 <= parts <= PATCH_SIZE and exact):
            raise ValueError(
                f"resolution must be {STEP_SECONDS} s divided by 1 to {PATCH_SIZE} "
                f"(0.16, 0.08, 0.04, 0.02, 0.01, ...), got {resolution}"
            )
        longest = self._backbone.pass_seconds
        window = min(STEP_WINDOW, longest) if window is None else window
        if not STEP_SECONDS <= window <= longest:
            raise ValueError(
                f"window must be from {STEP_SECONDS} to {longest} s (a pass of the "
                f"encoder), got {window:g}"
            )
        size, hop = round(window * SAMPLE_RATE), Fraction(STEP, parts)
        return self._run(self._tagging(self._cut(size, hop, centred=True)), files)

    def _embedding(
        self, layer: int | str, pooling: str, chunk: float | None, hop: float | None
    ) -> Job:
        """The job of `embed`."""
        config = self.encoder.config
        last = config.num_blocks
        if layer != "all" and not (isinstance(layer, int) and -1 <= layer <= last):
            raise ValueError(f'layer must be "all" or in -1..{last}, got {layer!r}')
        check_choice("pooling", pooling, POOLINGS)
        if pooling in SERIES:
            freq = config.freq if pooling == "frames" else "flatten"
            cls_token = pooling == "tokens"
            windows = self._windows(chunk, hop, config.time_shifts)
            return EmbedFrames(self._backbone, windows, layer, freq, cls_token)
        pool, windows = Pooling(pooling, config.embed_dim), self._windows(chunk, hop)
        return PooledClips(self._backbone, windows, pool, layer)

    def _tagging(self, windows: Windows) -> Job:
        """The job of `tag`."""
        model = self.model
        if not isinstance(model, SSLAMClassifier):
            raise ValueError(
                "this model is an encoder without a head, and labels need one: load a "
                "fine-tuned model (a classification training of this package, or a "
                "fine-tuned checkpoint of the authors); embed() works with this one"
            )
        pool = model.pooling
        return PooledClips(self._backbone, windows, pool, pool.layer, model)

    def _windows(
        self, chunk: float | None, hop: float | None, time_shifts: int = 1
    ) -> Windows:
        """How `chunk` and `hop` cut a recording."""
        if chunk is None:
            if hop is not None:
                raise ValueError("hop needs chunk: give the length of the windows too")
            return self._cut(time_shifts=time_shifts)
        hop = chunk if hop is None else hop
        for name, value, samples in ("chunk", chunk, FRAME_LENGTH), ("hop", hop, 1):
            least = samples / SAMPLE_RATE
            if not least <= value < float("inf"):
                raise ValueError(f"{name} must be {least:g} s or more, got {value}")
        samples = round(chunk * SAMPLE_RATE), round(hop * SAMPLE_RATE)
        return self._cut(*samples, time_shifts=time_shifts)

    def _run(
        self, job: Job, files: Iterable[Any], rate: float | None = None
    ) -> Iterator[FileResult]:
        """Results of files; warns once about what a fixed clip length leaves out."""
        if is_single(files):
            name = source_name(files, 0)
            raise ValueError(f"need a list of files, got one ({name}): put it in [...]")
        results = stream(
            job,
            files,
            rate=rate,
            batch_seconds=self.batch_seconds,
            num_threads=reader_threads(self.device),
        )
        return self._watched(results, job.windows) if self._backbone.fixed else results

    def _watched(
        self, results: Iterator[FileResult], windows: Windows
    ) -> Iterator[FileResult]:
        """Results as they are; a warning for the first one that is cut."""
        with closing(results):  # type: ignore[type-var]  # a generator
            for result in results:
                samples = (result.duration or 0) * SAMPLE_RATE
                if not self._warned and windows.cuts(samples):
                    self._warned = True
                    logging.warning(
                        "%s has %.2f s: the model has a fixed clip length "
                        "(target_frames), and of each clip or chunk only the first "
                        "%.2f s count; chunk=%g takes everything",
                        *(result.name, result.duration),
                        *(self._backbone.pass_seconds, self._backbone.pass_seconds),
                    )
                yield result

    def _values(self, job: Job, audio: Any, rate: float | None) -> Iterator[np.ndarray]:
        """Values of one or several clips; the first that cannot be used is raised."""
        clips = [audio] if is_single(audio) else audio
        for result in _usable(self._run(job, clips, rate)):
            yield result.values


def _usable(results: Iterator[FileResult]) -> Iterator[FileResult]:
    """Results; the first that has none is raised."""
    with closing(results):  # type: ignore[type-var]  # a generator
        for result in results:
            if result.error is not None:
                raise AudioError(result.name, result.error)
            yield result


def _rated(clips: Iterable[Any], rate: float | None) -> Iterator[Any]:
    """Clips, arrays among them with their rate."""
    for clip in clips:
        yield (clip, rate) if rate is not None and hasattr(clip, "ndim") else clip


def best_labels(
    classes: Sequence[str], top_k: int, limits: np.ndarray | float = 0.0
) -> Callable[[np.ndarray], list[Label]]:
    """The choice of the `top_k` (0: all) labels that reach their limit, best first.

    Args:
        classes: Names of the C classes.
        top_k: Labels of a row.
        limits: Least score, of all classes or of each (C,).
    """

    def choose(scores: np.ndarray) -> list[Label]:
        order = np.argsort(-scores, kind="stable")[: top_k or None]
        # In the scores' own precision: a float32 score of 0.7 reaches 0.7.
        reached = scores >= np.asarray(limits, scores.dtype)
        return [(str(classes[i]), float(scores[i])) for i in order if reached[i]]

    return choose


def choose_dtype(dtype: str, device: torch.device, speed: bool = False) -> str:
    """The precision that "auto" stands for; any other one as it is.

    On a GPU bfloat16, or float16 where it has no bfloat16. Elsewhere float32; bfloat16
    where `speed` is asked for and the processor multiplies in it.
    """
    if dtype != "auto":
        return dtype
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if native else "float16"
    fast = device.type == "cpu" and speed and multiplies_bfloat16()
    return "bfloat16" if fast else "float32"


def find_device(name: str | None) -> torch.device:
    """The device of that name; CUDA, else MPS, else the CPU without a name.

    Raises:
        ValueError: No such device here.
    """
    counts = {
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
        "cpu": 1,
    }
    available = [kind for kind, count in counts.items() if count]
    try:
        device = torch.device(name or available[0])
    except (RuntimeError, TypeError):
        raise ValueError(f"device must be cpu, cuda or mps, got {name!r}") from None
    if (device.index or 0) >= counts.get(device.type, 0):
        raise ValueError(
            f"device {name!r} is not available here, only {', '.join(available)}"
        )
    return device
