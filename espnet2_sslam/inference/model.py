"""SSLAM for people who never train: embeddings and labels of any audio."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_sslam.audio import AudioError
from espnet2_sslam.checkpoint import load_model, save_model
from espnet2_sslam.classifier import SSLAMClassifier
from espnet2_sslam.encoder import SSLAMEncoder
from espnet2_sslam.inference.backbone import DTYPES, Backbone, find_device
from espnet2_sslam.inference.engine import reader_threads, run_job
from espnet2_sslam.inference.plans import plan_embed, plan_frames, plan_tag
from espnet2_sslam.inference.result import FileResult
from espnet2_sslam.inference.sources import as_clips, is_single, source_name
from espnet2_sslam.units import SAMPLE_RATE

BATCH_SECONDS = {"cpu": 40.96}  # four clips of 10.24 s: more is no faster there
BATCH_SECONDS_GPU = 655.36

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
        dtype: "float32" or "bfloat16". The latter is autocast (matrix products only);
            embeddings then differ by about 0.5 % (ViT-Base, random weights).
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
        dtype: str = "float32",
        batch_seconds: float | None = None,
    ):
        if not isinstance(model, (SSLAMEncoder, SSLAMClassifier)):
            raise ValueError(
                "need an SSLAMEncoder or an SSLAMClassifier, got "
                f"{type(model).__name__}; SSLAM.from_pretrained() loads one"
            )
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be {' or '.join(DTYPES)}, got {dtype!r}")
        if batch_seconds is not None and not batch_seconds > 0:
            raise ValueError(f"batch_seconds must be above 0, got {batch_seconds}")
        self.device = find_device(device)
        self.model = model.to(self.device).eval()
        self.config = dict(config or {})
        self.dtype = dtype
        self.batch_seconds = batch_seconds or BATCH_SECONDS.get(
            self.device.type, BATCH_SECONDS_GPU
        )
        self._backbone = Backbone(self.encoder, self.device, dtype)
        self._warned = False

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        weights: str = "student",
        device: str | None = None,
        dtype: str = "float32",
        cache_dir: str | Path | None = None,
        batch_seconds: float | None = None,
        **encoder_options: Any,
    ) -> "SSLAM":
        """Load a model.

        Args:
            source: A folder of `save_pretrained`, a checkpoint of the authors, a
                training folder or its .pth file, a Hugging Face id or an ESPnet model
                zoo tag; see `checkpoint.load_model`.
            revision: Of a Hugging Face id.
            weights: "student" or "teacher" of a pre-training.
            device, dtype, batch_seconds: See the class.
            cache_dir: Where downloads go.
            encoder_options: Options of `SSLAMEncoder` that replace the stored ones,
                as target_frames=1024 or freq="concat".

        Raises:
            ValueError: What cannot be loaded, and why; see the class as well.
        """
        find_device(device)  # before a large download
        loaded = load_model(
            source,
            revision=revision,
            weights=weights,
            cache_dir=cache_dir,
            **encoder_options,
        )
        options = dict(device=device, dtype=dtype, batch_seconds=batch_seconds)
        return cls(loaded.model, loaded.config, **options)

    def __repr__(self) -> str:
        head = f"{len(self.classes)} classes" if self.is_classifier else "no head"
        size = f"depth {self.encoder.config.depth}, {self.encoder.config.embed_dim} channels"
        return f"SSLAM({size}, {head}, {self.device}, {self.dtype})"

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write model.safetensors and config.json, which `from_pretrained` reads."""
        return save_model(self.model, folder, self.config.get("origin"))

    @property
    def encoder(self) -> SSLAMEncoder:
        """The encoder, of a classifier too."""
        return self.model.encoder if self.is_classifier else self.model

    @property
    def is_classifier(self) -> bool:
        """Whether the model has a head, which `tag` needs."""
        return isinstance(self.model, SSLAMClassifier)

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes; None for an encoder alone."""
        return list(self.model.classes) if self.is_classifier else None

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
                160 ms (mean over frequency; 8 * D with the encoder's freq="concat").
            chunk, hop: See `embed_files`.

        Returns:
            A clip: (D,); (T, D) with frames or chunks. A list: (clips, D), or a list
            of (T, D). With layer="all" (L, D) stands for D.

        Raises:
            AudioError: Audio that cannot be used, in one line.
            ValueError: An option outside its range.
        """
        clips, single = as_clips(audio)
        job = plan_embed(self._backbone, layer, pooling, chunk, hop)
        values = [result.values for result in self._collect(job, clips, rate)]
        if pooling != "frames" and chunk is None:
            values = [value[0] for value in values]
            if not single:
                return np.stack(values) if values else job.nothing()
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
        clips, single = as_clips(audio)
        job = plan_tag(self._backbone, self._classifier())
        tagged = []
        for result in self._collect(job, clips, rate):
            scores = result.values[0]
            best = np.argsort(-scores, kind="stable")[:top_k]
            tagged.append([(self.model.classes[c], float(scores[c])) for c in best])
        return tagged[0] if single else tagged

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
        return self._run(plan_embed(self._backbone, layer, pooling, chunk, hop), files)

    def tag_files(
        self,
        files: Iterable[Any],
        *,
        chunk: float | None = None,
        hop: float | None = None,
    ) -> Iterator[FileResult]:
        """Scores of all classes for many files; see `embed_files` and `tag`."""
        job = plan_tag(self._backbone, self._classifier(), chunk, hop)
        return self._run(job, files)

    def tag_frames(
        self,
        files: Iterable[Any],
        *,
        resolution: float = 0.16,
        window: float | None = None,
    ) -> Iterator[FileResult]:
        """Scores of all classes for each time step of many files.

        Each step is the score of a window around its middle, as of a clip of that
        length; at the ends of the recording it is shorter. With `window` 0 the head is
        applied to the patches of the step alone, all of which have seen the whole pass
        (of long recordings: at least 5.12 s on each side, or a quarter of a pass). That
        is about six times faster and was much worse: on spliced synthetic clips the
        tiny model of the recipe reached 0.11 mAP over time steps, with windows 0.27
        (chance 0.08). It is for heads that were trained on single steps. A resolution
        finer than 160 ms takes that many passes, shifted against each other; a step's
        160 ms lie around its middle. No head of a clip classifier was trained for time
        steps: use scores to rank, or choose thresholds on data.

        Args:
            files: Audio of any kind, see the class; any iterable.
            resolution: Seconds of a step: 0.16, or 0.16 divided by 2 to 16.
            window: Seconds of the windows, from 0.16 to a whole pass; by default 1.0.
                0: the step's own patches, for heads that pool patches.

        Raises:
            ValueError: The model is no classifier, or an option outside its range.
        """
        job = plan_frames(self._backbone, self._classifier(), resolution, window)
        return self._run(job, files)

    def _classifier(self) -> SSLAMClassifier:
        """The model, if it has a head."""
        if not self.is_classifier:
            raise ValueError(
                "this model is an encoder without a head, and labels need one: load a "
                "fine-tuned model (a classification training of this package, or a "
                "fine-tuned checkpoint of the authors); embed() works with this one"
            )
        return self.model

    def _run(self, job, files, rate=None) -> Iterator[FileResult]:
        """Results of files; warns once about what a fixed clip length leaves out."""
        if is_single(files):
            name = source_name(files, 0)
            raise ValueError(f"need a list of files, got one ({name}): put it in [...]")
        results = run_job(
            job,
            files,
            rate=rate,
            batch_seconds=self.batch_seconds,
            num_threads=reader_threads(self.device),
        )
        return self._watched(results, job) if self._backbone.fixed else results

    def _watched(self, results, job) -> Iterator[FileResult]:
        """Results as they are; a warning for the first one that is cut."""
        with closing(results):
            for result in results:
                if not self._warned and result.error is None:
                    self._warned = self._warn_if_cut(result, job.layout)
                yield result

    def _warn_if_cut(self, result: FileResult, layout) -> bool:
        """Whether more than the fixed clip length was given."""
        cut = layout.cuts(round(result.duration * SAMPLE_RATE))
        if cut:
            most = self._backbone.pass_seconds
            logging.warning(
                "%s has %.2f s: the model has a fixed clip length (target_frames), and "
                "of each clip or chunk only the first %.2f s count; chunk=%g takes "
                "everything",
                result.name,
                result.duration,
                most,
                most,
            )
        return cut

    def _collect(self, job, clips, rate) -> Iterator[FileResult]:
        """Results of clips; the first one that cannot be used is raised."""
        with closing(self._run(job, clips, rate)) as results:
            for result in results:
                if result.error is not None:
                    raise AudioError(result.name, result.error)
                yield result
