#!/usr/bin/env python3
"""Plot a clip as a pre-training model meets it: mixture, mask, prediction error.

Example: python examples/panel.py --model_dir exp/pretrain/phase2_tiny_seed1
--wav dog.wav rain.wav --output panel.png
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from espnet2_sslam.audio import read_audio
from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.checkpoint import load_pretrain_model
from espnet2_sslam.features import kaldi_fbank
from espnet2_sslam.mixing import unmixed_steps
from espnet2_sslam.pretrain_model import MIXED, SSLAMPretrainModel
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
        look: dict[str, Any] = {"cmap": "magma", "vmin": low, "vmax": high, **style}
        look |= {"origin": "lower", "aspect": "auto", "interpolation": "nearest"}
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
            middle = (begin + stop) / 2
            axes[1].text(middle, 118, "unmixed", bbox=box, ha="center", va="top")
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
        if shorter:
            axis.axvline(panel.frames * SECONDS_PER_FRAME, color="w", ls="--", lw=1.5)
    figure.colorbar(image, ax=list(axes[:-1]), label="normalised log-mel", aspect=40)
    figure.colorbar(errors, ax=axes[-1], label="patch loss")
    figure.suptitle(title, fontsize="medium", wrap=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(cmd: Sequence[str] | None = None) -> None:
    """Load a model and audio files and draw the first clip's panels as PNG."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model_dir", type=Path, required=True, help="directory of a pre-training run")
    text = "audio files; the first is drawn, mixed with the last (phase 2 needs two)"
    add("--wav", type=Path, nargs="+", required=True, help=text)
    add("--output", type=Path, default=Path("panel.png"), help="PNG file [panel.png]")
    add("--seed", type=int, default=0, help="of the mask, the regions and the noise")
    args = parser.parse_args(cmd)
    model = load_pretrain_model(args.model_dir)
    if MIXED in model.streams and len(args.wav) < 2:
        raise ValueError(
            f"{args.model_dir} was trained on mixtures: give two audio files, got one"
        )
    panel = compute_panel(model, [read_audio(wav) for wav in args.wav], args.seed)
    title = f"{args.model_dir.name}: {args.wav[0].name}"
    if panel.mixture is not None:
        title += f"\nwith {args.wav[-1].name}"
    plot_panel(panel, args.output, title)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    run_main(main)
