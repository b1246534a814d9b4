"""Options of the SSLAM class -> jobs: the checks, and seconds to samples."""

from espnet2_sslam.classifier import SSLAMClassifier
from espnet2_sslam.inference.backbone import Backbone
from espnet2_sslam.inference.jobs import (
    POOLINGS,
    EmbedClips,
    EmbedFrames,
    TagClips,
    TagSteps,
)
from espnet2_sslam.inference.windows import (
    STEP,
    CentredWindows,
    Chunks,
    ShiftedPasses,
    WholeClip,
)
from espnet2_sslam.units import FRAME_LENGTH, PATCH_SIZE, SAMPLE_RATE

CONTEXT = 32  # time patches (5.12 s) that chunks of long recordings share
STEP_SECONDS = STEP / SAMPLE_RATE
STEP_WINDOW = 1.0  # s around a time step that are scored as a clip


def plan_embed(
    backbone: Backbone,
    layer: int | str,
    pooling: str,
    chunk: float | None,
    hop: float | None,
) -> EmbedClips | EmbedFrames:
    """The job of `SSLAM.embed`."""
    last = backbone.encoder.config.num_blocks
    if layer != "all" and not (isinstance(layer, int) and -1 <= layer <= last):
        raise ValueError(f'layer must be "all" or in -1..{last}, got {layer!r}')
    if pooling not in POOLINGS:
        raise ValueError(
            f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}"
        )
    layout = _clips_or_chunks(backbone, chunk, hop)
    if pooling == "frames":
        return EmbedFrames(backbone, layout, layer)
    return EmbedClips(backbone, layout, layer, pooling)


def plan_tag(
    backbone: Backbone,
    classifier: SSLAMClassifier,
    chunk: float | None = None,
    hop: float | None = None,
) -> TagClips:
    """The job of `SSLAM.tag`."""
    return TagClips(backbone, classifier, _clips_or_chunks(backbone, chunk, hop))


def plan_frames(
    backbone: Backbone,
    classifier: SSLAMClassifier,
    resolution: float,
    window: float | None,
) -> TagClips | TagSteps:
    """The job of `SSLAM.tag_frames`."""
    parts = round(STEP_SECONDS / resolution) if resolution > 0 else 0
    exact = abs(parts * resolution / STEP_SECONDS - 1) < 1e-3  # 0.0533: a third
    if not (1 <= parts <= PATCH_SIZE and exact):
        raise ValueError(
            f"resolution must be {STEP_SECONDS} s divided by 1 to {PATCH_SIZE} (0.16, "
            f"0.08, 0.04, 0.02, 0.01, ...), got {resolution}"
        )
    if window is None:
        window = min(STEP_WINDOW, backbone.pass_seconds)
    if window == 0 and classifier.pooling.kind == "cls":
        raise ValueError(
            "window 0 scores the patches of a time step, and this model's head is on "
            f"the CLS token: give a window, as {STEP_WINDOW}"
        )
    if window != 0:
        if not STEP_SECONDS <= window <= backbone.pass_seconds:
            raise ValueError(
                f"window must be 0 or from {STEP_SECONDS} to {backbone.pass_seconds} s "
                f"(a pass of the encoder), got {window}"
            )
        layout = CentredWindows(round(window * SAMPLE_RATE), parts)
        return TagClips(backbone, classifier, layout)
    context = min(CONTEXT, backbone.pass_frames // PATCH_SIZE // 4)
    layout = ShiftedPasses(backbone.pass_frames, context, parts)
    return TagSteps(backbone, classifier, layout)


def _clips_or_chunks(
    backbone: Backbone, chunk: float | None, hop: float | None
) -> WholeClip | Chunks:
    """How `chunk` and `hop` cut a recording."""
    if chunk is None:
        if hop is not None:
            raise ValueError("hop needs chunk: give the length of the windows too")
        return WholeClip(backbone.pass_frames, backbone.fixed)
    hop = chunk if hop is None else hop
    for name, value, least in (
        ("chunk", chunk, FRAME_LENGTH / SAMPLE_RATE),
        ("hop", hop, 1 / SAMPLE_RATE),
    ):
        if not least <= value < float("inf"):
            raise ValueError(f"{name} must be {least:g} s or more, got {value}")
    size, hop = round(chunk * SAMPLE_RATE), round(hop * SAMPLE_RATE)
    return Chunks(size, hop, backbone.pass_frames, backbone.fixed)
