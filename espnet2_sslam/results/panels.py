"""A clip as the student meets it: mixture, mask, and how wrong the prediction is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from espnet2_sslam.audio import read_audio
from espnet2_sslam.features import kaldi_fbank
from espnet2_sslam.mixing import unmixed_steps
from espnet2_sslam.pretrain_model import MIXED, SSLAMPretrainModel
from espnet2_sslam.results.plots import plt, save
from espnet2_sslam.units import (
    FRAME_SHIFT_MS,
    NUM_MEL_BINS,
    PATCH_SIZE,
    PATCHES_PER_STEP,
)

SECONDS_PER_FRAME = FRAME_SHIFT_MS / 1000


@dataclass(frozen=True)
class Panel:
    """One clip. Spectrograms (T, 128); mask and error (S, 8), S = T / 16.

    `error` is the patch loss of each hidden patch, NaN where the patch is visible;
    `mixture` and `unmixed` (S,) are None in phase 1; `frames` is the clip's own length.
    """

    clip: np.ndarray
    mixture: np.ndarray | None
    unmixed: np.ndarray | None
    mask: np.ndarray
    error: np.ndarray
    frames: int


@torch.no_grad()
def compute_panel(
    model: SSLAMPretrainModel, clips: Sequence[np.ndarray], seed: int = 0
) -> Panel:
    """Run one pre-training step without learning and keep the first clip's part.

    Args:
        model: In evaluation mode.
        clips: 16 kHz waveforms; the neighbour of a clip is the one before it, so two
            clips are mixed with each other.
        seed: Of the mask, the regions and the noise.
    """
    waves = [torch.as_tensor(np.asarray(clip), dtype=torch.float32) for clip in clips]
    lengths = torch.tensor([len(wave) for wave in waves])
    speech = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    if model.encoder.config.input_size == NUM_MEL_BINS:
        speech, lengths = kaldi_fbank(speech, lengths)
    draws = model.draw(len(clips), torch.Generator().manual_seed(seed))
    unmixed, mixed = model.student_inputs(speech, lengths, draws)
    targets = model.make_targets(unmixed, mixed, draws)
    inputs = {"unmixed": unmixed, MIXED: mixed}
    predictions = model.predict(torch.cat([inputs[s] for s in model.streams]), draws)
    stream = len(model.streams) - 1  # the mixed one where there is one
    clip = stream * len(clips)
    row = clip * model.clone_batch
    hidden = predictions.hidden_index[row]
    wrong = predictions.patch[row].float() - targets.patch[clip][hidden]
    error = torch.full((draws.mask.shape[1],), float("nan"))
    error[hidden] = wrong.square().sum(-1) / wrong.shape[-1] ** 0.5
    steps = None
    if mixed is not None and draws.regions is not None:
        steps = unmixed_steps(draws.regions, model.num_steps)[0].numpy()
    _, own = model.encoder.fbank(speech, lengths)
    return Panel(
        clip=unmixed[0].numpy(),
        mixture=None if mixed is None else mixed[0].numpy(),
        unmixed=steps,
        mask=draws.mask[0].view(-1, PATCHES_PER_STEP).numpy(),
        error=error.view(-1, PATCHES_PER_STEP).numpy(),
        frames=min(int(own[0]), model.clip_frames),
    )


def plot_panel(panel: Panel, path: Path, title: str) -> None:
    """Draw the panels one under the other over time: clip, mixture, mask, error."""
    seen = panel.clip if panel.mixture is None else panel.mixture
    rows = 3 if panel.mixture is None else 4
    figure, axes = plt.subplots(
        rows, 1, figsize=(9, 2.15 * rows), sharex=True, layout="constrained"
    )
    low, high = np.percentile(seen, (1, 99.8))
    end = len(panel.clip) * SECONDS_PER_FRAME

    def show(axis: Axes, values: np.ndarray, text: str, **style: Any) -> AxesImage:
        """Draw (T, 128) or (S, 8): time to the right, low frequencies below."""
        look: dict[str, Any] = {
            "origin": "lower",
            "aspect": "auto",
            "interpolation": "nearest",
        }
        look |= {"cmap": "magma", "vmin": low, "vmax": high, **style}
        axis.set_title(text)
        image = np.swapaxes(values, 0, 1)
        return axis.imshow(image, extent=(0.0, end, 0, NUM_MEL_BINS), **look)

    shorter = panel.frames < len(panel.clip)
    image = show(axes[0], panel.clip, f"clip{', dashed: its end' * shorter}")
    if panel.mixture is not None and panel.unmixed is not None:
        show(axes[1], panel.mixture, "partial mixture with its neighbour")
        steps = np.concatenate([[0], panel.unmixed.astype(int), [0]])
        edges = np.flatnonzero(np.diff(steps)).reshape(-1, 2)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 2}
        for begin, stop in edges * PATCH_SIZE * SECONDS_PER_FRAME:
            axes[1].axvspan(begin, stop, fill=False, edgecolor="#56B4E9", lw=2.5)
            place: dict[str, Any] = {
                "x": (begin + stop) / 2,
                "y": 118,
                "ha": "center",
                "va": "top",
            }
            axes[1].text(s="unmixed", bbox=box, **place)
    share = 100 * (1 - panel.mask.mean())
    text = f"what the student sees: {share:.0f} % of the patches"
    show(axes[-2], seen, text)
    cover = np.zeros((*panel.mask.shape, 4))  # grey over the hidden patches
    cover[panel.mask] = (0.73, 0.73, 0.73, 1.0)
    show(axes[-2], cover, text)
    text = "squared error of the predicted patches (hatched: visible), mean "
    text += f"{np.nanmean(panel.error):.3f}"
    axes[-1].patch.set(hatch="///", facecolor="#eeeeee", edgecolor="#cccccc")
    errors = show(axes[-1], panel.error, text, cmap="viridis", vmin=None, vmax=None)
    axes[-1].set_xlabel("time (s)")
    for axis in axes:
        axis.set_ylabel("mel bin")
        axis.set_yticks([0, 32, 64, 96, 128])
        axis.grid(False)
        if shorter:
            axis.axvline(panel.frames * SECONDS_PER_FRAME, color="w", ls="--", lw=1.5)
    figure.colorbar(image, ax=list(axes[:-1]), label="normalised log-mel", aspect=40)
    figure.colorbar(errors, ax=axes[-1], label="patch loss")
    figure.suptitle(title, fontsize="medium", wrap=True)
    save(figure, path)


def draw_panel(
    model_dir: Path, wavs: Sequence[Path], output: Path, seed: int = 0
) -> None:
    """Load a model and audio files and draw the first clip's panels as PNG.

    Raises:
        ValueError: Unusable audio, or one file only with a model of mixtures.
    """
    # Imported here: only this one plot of the results needs to read weights.
    from espnet2_sslam.checkpoint import load_pretrain_model

    model = load_pretrain_model(model_dir)
    if MIXED in model.streams and len(wavs) < 2:
        raise ValueError(
            f"{model_dir} was trained on mixtures: give two audio files, got one"
        )
    panel = compute_panel(model, [read_audio(wav) for wav in wavs], seed)
    title = f"{Path(model_dir).name}: {Path(wavs[0]).name}"
    if panel.mixture is not None:
        title += f"\nwith {Path(wavs[-1]).name}"
    plot_panel(panel, output, title)
