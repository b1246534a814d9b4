"""A model as one ONNX file: waveforms in, features or scores out, no Python needed.

Shapes: B clips, L output steps, D channels, C classes.
"""

import copy
import importlib
import json
import logging
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

import espnet2_sslam
from espnet2_sslam.audio import read_audio
from espnet2_sslam.classifier import Pooling, SSLAMClassifier
from espnet2_sslam.config import check_choice
from espnet2_sslam.encoder import EncoderOutput, SSLAMEncoder
from espnet2_sslam.store import replacing, sha256
from espnet2_sslam.units import (
    FRAME_LENGTH,
    FRAME_SHIFT,
    FRAME_SHIFT_MS,
    PATCH_SIZE,
    SAMPLE_RATE,
)

TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "int8": 1e-1}
OPSETS = range(18, 23)  # 23 has an Attention that onnxruntime does not take masks for
OPSET = 18
PROTOBUF_LIMIT = 2**31  # bytes of one file
TRACED_SIZES = (9_840, 16_240)  # samples; any others will do
LONGEST = 15 * SAMPLE_RATE  # samples of a clip that are compared
BATCH = 4  # clips that are compared at once
SLACK = 3_210  # samples that such a batch is longer than its longest clip


class Check(NamedTuple):
    """What was compared, and the largest difference of each output."""

    clips: int
    batches: int
    tolerance: float
    largest: dict[str, float]

    def __str__(self) -> str:
        each = ", ".join(f"{name} {value:.1e}" for name, value in self.largest.items())
        return (
            f"{self.clips} clips, each alone and in padded batches ({self.batches}): "
            f"largest difference from PyTorch {each} (allowed {self.tolerance:.0e})"
        )


class Exported(NamedTuple):
    """The file, its size in bytes, its outputs and how well they agree."""

    path: Path
    size: int
    outputs: Sequence[str]
    check: Check


def export_onnx(
    model: SSLAMEncoder | SSLAMClassifier,
    path: str | Path,
    *,
    pooling: str = "mean",
    dtype: str = "float32",
    opset: int = OPSET,
    origin: dict[str, Any] | None = None,
    clips: Sequence[np.ndarray] = (),
) -> Exported:
    """Write a model as ONNX, fbank included, and compare it with PyTorch.

    Inputs: `speech` (B, samples), float32 at 16 kHz in [-1, 1], padded at the end, and
    `speech_lengths` (B,), int64. Outputs: see the graphs below; of a clip whose length
    is below 400 or beyond the samples they are NaN, and its feature length is 0.
    Speech longer than `max_samples` (in the metadata; the encoder's max_frames) is
    refused by the runtime, unless the model has target_frames.

    Args:
        model: Encoder or classifier; it is not changed.
        path: File to write; an old one stays until the new one is checked.
        pooling: "mean" or "cls": the embedding of an encoder.
        dtype: Of the network's weights; log-mel and outputs are float32 in any case.
            "float16": half the size, and agreement to 2e-2 instead of 1e-4. "int8":
            the products of the blocks, a third of the size and faster, to 1e-1.
        opset: ONNX operator set, 18 to 22.
        origin: Where the weights come from; kept in the metadata.
        clips: Real clips (N,) at 16 kHz to compare with, besides the made ones.

    Raises:
        ValueError: A wrong option, onnx is not installed, the model is too large, or
            the file does not give what PyTorch gives (no file is left then).
        OSError: The file cannot be written.
    """
    require_onnx()
    check_choice("dtype", dtype, TOLERANCE)
    check_choice("pooling", pooling, ("mean", "cls"))
    if opset not in OPSETS:
        raise ValueError(f"opset must be in {OPSETS[0]}..{OPSETS[-1]}: {opset}")
    path = Path(path)
    graph = _graph(model, pooling)
    clips = [*made_clips(), *clips]
    if dtype == "float16":
        graph.encoder.half()  # but for the log-mel and the positions
    elif dtype == "int8":
        _round_to_int8(graph.encoder, clips)
    size = sum(t.numel() * t.element_size() for t in graph.state_dict().values())
    if size > PROTOBUF_LIMIT - 2**24:
        raise ValueError(
            f"the weights take {size / 2**30:.1f} GiB, an ONNX file holds 2 GiB: use "
            "--dtype float16"
        )
    with replacing(path) as temporary:
        program = _traced(graph, opset)
        _hide_mel_filters(program.model.graph)
        program.model.metadata_props.update(_metadata(graph, dtype, origin))
        program.model.producer_name = "espnet2_sslam"
        program.model.producer_version = espnet2_sslam.__version__
        program.save(str(temporary), external_data=False)
        if dtype == "int8":
            _quantize(temporary)
        check = check_file(model, temporary, clips, pooling=pooling, dtype=dtype)
    return Exported(path, path.stat().st_size, graph.outputs, check)


def require_onnx() -> tuple[Any, Any]:
    """Import onnx and onnxruntime, or say in one line how to get them."""
    try:
        importlib.import_module("onnxscript")  # torch's exporter needs it
        names = "onnx", "onnxruntime"
        return tuple(importlib.import_module(name) for name in names)  # type: ignore
    except ImportError as error:
        raise ValueError(
            f"ONNX needs {error.name}: pip install onnx onnxruntime onnxscript"
        ) from error


def read_facts(path: str | Path) -> dict[str, Any]:
    """What an ONNX file says of itself: its metadata, outputs, parameters and hash.

    Raises:
        ValueError: onnx is not installed, or this is no ONNX file.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise ValueError("ONNX needs onnx: pip install espnet2_sslam[onnx]") from error
    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError:
        raise ValueError(f"{path} is not an ONNX file, or is damaged") from None
    facts: dict[str, Any] = {}
    for entry in model.metadata_props:
        try:
            facts[entry.key] = json.loads(entry.value)
        except ValueError:  # a word
            facts[entry.key] = entry.value
    return facts | {
        "outputs": [output.name for output in model.graph.output],
        "parameters": sum(math.prod(of.dims) for of in model.graph.initializer),
        "opset": model.opset_import[0].version,
        "file": Path(path).name,
        "bytes": Path(path).stat().st_size,
        "sha256": sha256(path),
    }


def _metadata(graph: Any, dtype: str, origin: dict | None) -> dict[str, str]:
    """What a user of the file must know, as strings (lists and objects in JSON)."""
    encoder: SSLAMEncoder = graph.encoder
    properties: dict[str, Any] = {
        "model_type": "sslam",
        "sampling_rate": SAMPLE_RATE,
        "resampler": encoder.config.resampler,
        "min_samples": FRAME_LENGTH,
        "invalid_lengths": "NaN in the clip's outputs",
        "max_samples": _max_samples(encoder),
        "target_frames": encoder.config.target_frames,
        "fbank_mean": float(encoder.log_mel.mean),
        "fbank_std": float(encoder.log_mel.std),
        "dtype": dtype,
        "origin": origin,
        "converter": f"espnet2_sslam {espnet2_sslam.__version__}",
    }
    if isinstance(graph, ScoreGraph):
        head = graph.classifier.config
        properties |= {"classes": list(head.classes), "task": head.task}
    else:
        config = encoder.config
        properties |= config.to_dict(("layer", "freq", "cls_token"))
        step = FRAME_SHIFT_MS * PATCH_SIZE / 1000 / config.upsample
        properties |= {"seconds_per_step": step, "pooling": graph.pooling.kind}
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in properties.items()
        if value is not None
    }


def _max_samples(encoder: SSLAMEncoder) -> int | None:
    """Longest speech that fits the position table; None where clips are cut to fit."""
    if encoder.config.target_frames is not None:
        return None
    return FRAME_LENGTH + FRAME_SHIFT * encoder.config.max_frames - 1


class FeatureGraph(nn.Module):
    """Waveforms and their lengths -> features, their lengths and one vector per clip.

    Args:
        encoder: Its options (layer, freq, cls_token, upsample) say what the features
            are: (B, L, D), zero beyond a clip's end, or (B, depth, L, D) with layer
            "all"; their lengths (B,).
        pooling: "mean" over the patches or "cls", of the same layer: (B, D) or
            (B, depth, D).
    """

    outputs = ("features", "feature_lengths", "embedding")

    def __init__(self, encoder: SSLAMEncoder, pooling: str):
        super().__init__()
        self.encoder = encoder
        self.pooling = Pooling(pooling, encoder.config.embed_dim)

    def forward(self, speech: torch.Tensor, speech_lengths: torch.Tensor):
        layer = self.encoder.config.layer
        out = _float(self.encoder.hidden_states(speech, speech_lengths, layer))
        states = out.layers[1:] if layer == "all" else [out.last]
        shaped = [self.encoder.shaped(state, out.steps) for state in states]
        vectors = [self.pooling(out._replace(last=state)) for state in states]
        (features, lengths), embedding = shaped[0], vectors[0]
        if layer == "all":
            features = torch.stack([state for state, _ in shaped], 1)
            embedding = torch.stack(vectors, 1)
        usable = _usable(speech, speech_lengths)
        lengths = torch.where(usable, lengths, 0)
        return _or_nan(features, usable), lengths, _or_nan(embedding, usable)


class ScoreGraph(nn.Module):
    """Waveforms and their lengths -> logits (B, C) and scores in 0..1 (B, C)."""

    outputs = ("logits", "scores")

    def __init__(self, classifier: SSLAMClassifier):
        super().__init__()
        self.classifier = classifier

    @property
    def encoder(self) -> SSLAMEncoder:
        """The classifier's encoder."""
        return self.classifier.encoder

    def forward(self, speech: torch.Tensor, speech_lengths: torch.Tensor):
        layer = self.classifier.pooling.layer
        out = _float(self.encoder.hidden_states(speech, speech_lengths, layer, 1))
        logits = self.classifier.logits(self.classifier.pooling(out))
        usable, scores = _usable(speech, speech_lengths), self.classifier.scores(logits)
        return _or_nan(logits, usable), _or_nan(scores, usable)


def _usable(speech: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Which clips (B,) have a length that can be: a graph cannot raise an error."""
    return (lengths >= FRAME_LENGTH) & (lengths <= speech.shape[1])


def _or_nan(output: torch.Tensor, usable: torch.Tensor) -> torch.Tensor:
    """The output (B, ...), NaN for the clips that are not usable."""
    rows = usable.view(-1, *[1] * (output.dim() - 1))
    return torch.where(rows, output, float("nan"))


def _graph(model: nn.Module, pooling: str) -> FeatureGraph | ScoreGraph:
    """What is computed, around a plain float32 copy of the model for waveforms."""
    model = copy.deepcopy(model).float().eval().requires_grad_(False)
    encoder = model.encoder if isinstance(model, SSLAMClassifier) else model
    assert isinstance(encoder, SSLAMEncoder)
    encoder.config = encoder.config.replace(input_size=1)
    if isinstance(model, SSLAMClassifier):
        return ScoreGraph(model)
    if encoder.config.time_shifts > 1:
        raise ValueError(
            "ONNX features have steps of 160 ms: leave time_shifts out; for finer ones "
            "run the file on speech from sample 2560 / k, 2 * 2560 / k, ... on, too"
        )
    return FeatureGraph(encoder, pooling)


@torch.no_grad()
def _round_to_int8(encoder: SSLAMEncoder, clips: Sequence[np.ndarray]) -> None:
    """Put the weights of an encoder's blocks on the grids that `_quantize` stores.

    Each output channel has its own grid of 255 values. Rounding shifts a channel's mean
    over the clips, alike for all tokens, so that it would not average out in an
    embedding: the bias takes the shift back.

    Source: Nagel et al., ICCV 2019, arXiv 1906.04721, section 4.2.
    """
    modules = [m for m in encoder.blocks.modules() if isinstance(m, nn.Linear)]
    sums = {module: torch.zeros(module.in_features) for module in modules}

    def add(module, args):
        sums[module] += args[0].mean((0, 1))

    hooks = [module.register_forward_pre_hook(add) for module in modules]
    longest = min(LONGEST, _max_samples(encoder) or LONGEST)
    for clip in clips:
        speech = torch.from_numpy(clip[:longest])[None]
        encoder.hidden_states(speech, torch.tensor([speech.shape[1]]))
    for hook in hooks:
        hook.remove()
    for module in modules:
        step = module.weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        rounded = (module.weight / step).round() * step
        shift = (rounded - module.weight) @ (sums[module] / len(clips))
        module.bias.sub_(shift)
        module.weight.copy_(rounded)


def _quantize(path: Path) -> None:
    """Make the blocks' products with weights int8 in a file, the log-mel's not.

    (The mel filters are a product too: a power spectrum in 8 bits loses all that is
    quiet, and the embedding with it.)
    """
    onnx, _ = require_onnx()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    nodes = [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul"
        and node.input[1] in weights
        and any("encoder.blocks." in scope.value for scope in node.metadata_props)
    ]
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # its advice is not for our user
    try:
        quantize_dynamic(
            model,
            path,
            nodes_to_quantize=nodes,
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
    finally:
        logging.disable(before)


def _hide_mel_filters(graph: Any) -> None:
    """Put an Identity before the mel filters, which then are no weights to quantise.

    (onnxruntime's quantize_dynamic, as users call it on our file, would take the power
    spectrum for 8 bits, and half of the features would be noise.)
    """
    import onnx_ir

    for node in list(graph):
        filters = node.inputs[1] if node.op_type == "MatMul" else None
        if filters is not None and filters.name.startswith("lifted_tensor"):
            hidden = onnx_ir.node("Identity", [filters])
            hidden.outputs[0].name = "mel_filters"
            graph.insert_before(node, hidden)
            node.replace_input_with(1, hidden.outputs[0])


def _float(out: EncoderOutput) -> EncoderOutput:
    """The same with tokens in float32, as what follows the network expects them."""
    layers = [tokens.float() for tokens in out.layers]
    return out._replace(last=out.last.float(), layers=layers)


def _traced(graph: nn.Module, opset: int) -> Any:
    """The graph as torch.onnx's program, for any batch and length."""
    speech = torch.randn(
        2, max(TRACED_SIZES), generator=torch.Generator().manual_seed(0)
    )
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the exporter's notes are not for its user
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                graph,
                (0.1 * speech, torch.tensor(TRACED_SIZES)),
                input_names=["speech", "speech_lengths"],
                output_names=list(graph.outputs),  # type: ignore[arg-type]
                dynamic_shapes=({0: "batch", 1: "samples"}, {0: "batch"}),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ValueError(
            f"torch.onnx cannot write this model with opset {opset}: {reason}"
        ) from error
    finally:
        logging.disable(before)


def check_file(
    model: SSLAMEncoder | SSLAMClassifier,
    path: str | Path,
    clips: Sequence[np.ndarray],
    *,
    pooling: str = "mean",
    dtype: str = "float32",
) -> Check:
    """Compare each clip alone in PyTorch with the clip alone and in batches in ONNX.

    A difference counts relative to the largest value of PyTorch's output for the clip,
    and absolutely where that is below 1: logits may be large and scores are small.

    Args:
        model: What the file was made of.
        path: The file.
        clips: At 16 kHz (N,); the first 15 s of each are used.
        pooling, dtype: As for `export_onnx`.

    Raises:
        ValueError: A difference above the tolerance.
    """
    onnx, onnxruntime = require_onnx()
    onnx.checker.check_model(str(path))
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(path), providers=providers)
    graph = _graph(model, pooling)
    longest = min(LONGEST, _max_samples(graph.encoder) or LONGEST)
    clips = [clip[:longest] for clip in clips]
    with torch.no_grad():
        expected = [
            graph(torch.from_numpy(clip)[None], torch.tensor([len(clip)]))
            for clip in clips
        ]
    largest: dict[str, float] = dict.fromkeys(graph.outputs, 0.0)
    rows = range(len(clips))
    batches = [rows[i : i + 1] for i in rows]
    batches += [rows[i : i + BATCH] for i in rows[::BATCH]] if len(clips) > 1 else []
    for batch in batches:
        lengths = np.array([len(clips[row]) for row in batch], np.int64)
        slack = SLACK if len(batch) > 1 else 0
        width = min(lengths.max() + slack, max(longest, lengths.max()))
        speech = np.full((len(batch), width), 7.0, np.float32)  # must not matter
        for place, row in enumerate(batch):
            speech[place, : lengths[place]] = clips[row]
        outputs = session.run(None, {"speech": speech, "speech_lengths": lengths})
        for place, row in enumerate(batch):
            triples = zip(largest, outputs, expected[row], strict=True)
            for name, output, right in triples:
                difference = _difference(output[place], right[0].numpy())
                largest[name] = max(largest[name], difference)
    several = sum(len(batch) > 1 for batch in batches)
    check = Check(len(clips), several, TOLERANCE[dtype], largest)
    if not max(largest.values()) <= check.tolerance:
        raise ValueError(f"the ONNX file does not equal the model: {check}")
    return check


def _difference(output: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference; what `output` has beyond must be zero. inf if not finite."""
    padded = np.zeros_like(output)
    padded[tuple(slice(size) for size in expected.shape)] = expected
    scale = max(1.0, float(np.abs(expected).max()))
    if not (np.isfinite(output).all() and np.isfinite(expected).all()):
        return float("inf")
    return float(np.abs(output - padded).max()) / scale


def made_clips() -> list[np.ndarray]:
    """Clips that a log-mel finds hard: short, silent, very quiet, clipped, mixed."""
    draw = np.random.default_rng(0)

    def noise(seconds, scale):
        return scale * draw.standard_normal(int(seconds * SAMPLE_RATE))

    def tone(seconds, frequency, scale):
        time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
        phase = 2 * np.pi * (frequency * time + 3 * np.sin(5 * time))
        chord = sum(np.sin(k * phase) / k for k in range(1, 8))
        return scale * chord * np.exp(-2 * (time % 0.7))

    silence = np.zeros(SAMPLE_RATE // 2)
    mixed = tone(10, 220, 0.2) + noise(10, 0.003)
    mixed[60_000:70_000] = 0
    clips = [
        noise(FRAME_LENGTH / SAMPLE_RATE, 0.1),
        silence,
        1e-4 * tone(0.9, 310, 0.3),
        np.clip(tone(2.21, 90, 1.5), -1, 1) + 0.2,
        np.concatenate([noise(1.7, 1e-5), silence, noise(0.3, 0.5)]),
        mixed,
    ]
    return [clip.astype(np.float32) for clip in clips]


def read_clips(paths: Sequence[str | Path]) -> list[np.ndarray]:
    """The audio files, and those in the folders, at 16 kHz.

    Raises:
        AudioError: A file that cannot be read.
        ValueError: There is none.
    """
    inside = [sorted(p.rglob("*")) if p.is_dir() else [p] for p in map(Path, paths)]
    files = [file for files in inside for file in files if not file.is_dir()]
    if paths and not files:
        raise ValueError(f"no audio in {', '.join(map(str, paths))} to check with")
    return [read_audio(file) for file in files]
