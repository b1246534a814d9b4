"""Waveform (16 kHz) to normalised log-mel spectrogram ("fbank").

The constants with a unit are in units.py.
"""

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from espnet2_sslam.config import check_values, full_scale
from espnet2_sslam.units import (
    AUDIOSET_MEAN,
    AUDIOSET_STD,
    FFT_SIZE,
    FRAME_LENGTH,
    FRAME_SHIFT,
    LOWEST_FREQUENCY,
    NUM_MEL_BINS,
    PATCH_SIZE,
    PRE_EMPHASIS,
    SAMPLE_RATE,
)

FRAMES_PER_PASS = 2_048  # frames computed at once: fits a CPU's cache
FRAMES_PER_PASS_GPU = 65_536  # bounds the memory on long audio


def num_frames(num_samples: torch.Tensor) -> torch.Tensor:
    """Number of whole 25 ms windows, every 10 ms, in `num_samples` samples."""
    return torch.clamp((num_samples - FRAME_LENGTH) // FRAME_SHIFT + 1, min=0)


def num_patch_steps(num_frames: torch.Tensor, time_shifts: int = 1) -> torch.Tensor:
    """Number of time patches that cover `num_frames` frames (the last one padded).

    With `time_shifts` of those that begin in them, every 16 / time_shifts frames.
    """
    return (num_frames * time_shifts + PATCH_SIZE - 1) // PATCH_SIZE


def checked_waves(
    waves: torch.Tensor, lengths: torch.Tensor | Sequence[int] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A padded batch as it should be: the rule of `config` for arrays, for tensors.

    Types and shapes are always looked at, values where that waits for no device: on a
    CPU, unless traced.

    Args:
        waves: (B, N) at 16 kHz, floats in [-1, 1] or integers of `config.SCALES`.
        lengths: Samples of each clip (B,); all N by default.

    Returns:
        The waves as floats, integers divided by their full scale, and the lengths on
        their device. What lies beyond a clip's end is left as it is.

    Raises:
        ValueError: Another type or shape; not one length a clip, or one below 25 ms or
            beyond the samples; samples that are not finite or above 100.
    """
    if waves.dim() != 2:
        raise ValueError(f"need waveforms of shape (B, N), got {tuple(waves.shape)}")
    waves = scaled(waves)
    lengths = checked_lengths(lengths, waves, FRAME_LENGTH)
    if not unreadable(waves):
        speech = zero_padding(waves.detach(), lengths)
        for row, (low, high) in enumerate(zip(*speech.aminmax(dim=1), strict=True)):
            check_values(float(low), float(high), f"clip {row} of the batch")
    return waves, lengths


def scaled(waves: torch.Tensor) -> torch.Tensor:
    """Floats as they are, integers divided by their full scale.

    Raises:
        ValueError: See `config.full_scale`.
    """
    scale, silence = full_scale(str(waves.dtype).removeprefix("torch."))
    return waves if scale == 1.0 else (waves.float() - silence) / scale


def checked_lengths(
    lengths: torch.Tensor | Sequence[int] | None, clips: torch.Tensor, least: int
) -> torch.Tensor:
    """Lengths (B,) of padded clips (B, N, ...) on their device, N by default.

    Raises:
        ValueError: Not a whole number for each clip; one below `least` or above N (not
            looked at on a GPU, or while tracing).
    """
    batch, longest = clips.shape[:2]
    if lengths is None:
        return torch.full((batch,), longest, device=clips.device)
    lengths = torch.as_tensor(lengths)
    if lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ValueError(f"lengths must be whole numbers, got {lengths.dtype}")
    if lengths.shape != (batch,):
        raise ValueError(
            f"need a length for each of {batch} clips, got {tuple(lengths.shape)}"
        )
    if not unreadable(lengths):
        low, high = torch.stack(lengths.aminmax()).tolist() if batch else (0, 0)
        unit = "samples" if clips.dim() == 2 else "frames"
        if low < least:
            duration = " (25 ms at 16 kHz)" if unit == "samples" else ""
            raise ValueError(
                f"a clip has {low} {unit}, at least {least}{duration} are needed: pad "
                "it or leave it out"
            )
        if high > longest:
            raise ValueError(
                f"a clip has {high} {unit} by its length, the batch only {longest}"
            )
    if clips.is_cuda and not lengths.is_cuda:
        return lengths.pin_memory().to(clips.device, non_blocking=True)
    return lengths.to(clips.device)


def unreadable(x: torch.Tensor) -> bool:
    """Whether no value can be read: on a GPU it would be waited for; while tracing."""
    return torch.compiler.is_compiling() or x.device.type != "cpu"


def kaldi_fbank(
    speech: torch.Tensor,
    lengths: torch.Tensor | Sequence[int] | None = None,
    checked: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-mel spectrogram of a padded batch, as Kaldi computes it clip by clip.

    25 ms Hann windows every 10 ms, 128 mel bins from 20 Hz to 8 kHz, pre-emphasis
    0.97, no dither, no energy, HTK-compatible; the mean of each clip over its own
    length is removed first. Runs on the waveform's device, in float32.

    Args:
        speech, lengths: See `checked_waves`.
        checked: Both are what it returned, augmented perhaps: they are not looked at.

    Returns:
        Un-normalised log-mel (B, T, 128), zero beyond a clip's end, and frames (B,).

    Raises:
        ValueError: See `checked_waves`. Where values decide no step (on a GPU, or while
            tracing) the result is as long as the padding allows.

    Source: torchaudio.compliance.kaldi.fbank with the arguments of
    cwx-worst-one/EAT@06c1c34, data/raw_audio_dataset.py.
    """
    if not checked or lengths is None:
        speech, lengths = checked_waves(speech, lengths)
    assert isinstance(lengths, torch.Tensor)
    # for `torch.compile`, `torch.export` and ONNX
    traced = torch.compiler.is_compiling()
    unseen = unreadable(lengths)
    frames = num_frames(lengths)
    with torch.autocast(speech.device.type, enabled=False):
        speech = zero_padding(speech.float(), lengths)
        if traced:
            mean = speech.sum(1, keepdim=True) / lengths[:, None]
        elif unseen:
            mean = speech.double().sum(1, keepdim=True) / lengths[:, None]
            mean = mean.float()
        else:  # clip by clip: another order of summation shows in nearly silent bins
            clips = zip(speech, lengths.tolist(), strict=True)
            mean = torch.stack([clip[:n].mean() for clip, n in clips])[:, None]
        speech = zero_padding(speech - mean, lengths)
        windows = speech.unfold(1, FRAME_LENGTH, FRAME_SHIFT)
        if traced:
            return zero_padding(_log_mel(windows), frames), frames
        cpu = speech.device.type == "cpu"
        step = (FRAMES_PER_PASS if cpu else FRAMES_PER_PASS_GPU) // len(speech)
        fbank = torch.cat([_log_mel(x) for x in windows.split(max(1, step), 1)], 1)
    longest = fbank.shape[1] if unseen else int(frames.max())
    return zero_padding(fbank[:, :longest], frames), frames


def _log_mel(windows: torch.Tensor) -> torch.Tensor:
    """Log-mel energies (B, T, 128) of windows (B, T, 400)."""
    windows = windows - windows.mean(-1, keepdim=True)
    # x[n] - 0.97 x[n-1], where the first sample is its own predecessor; product and
    # difference are rounded one by one as in Kaldi, which shows in quiet bins
    emphasised = windows.clone()
    emphasised[..., 1:].sub_(PRE_EMPHASIS * windows[..., :-1])
    emphasised[..., 0].sub_(PRE_EMPHASIS * windows[..., 0])
    if torch.compiler.is_compiling():  # the ONNX exporter knows no hann_window
        emphasised.mul_(_WINDOW.to(windows.device))
    else:
        emphasised.mul_(torch.hann_window(FRAME_LENGTH, False, device=windows.device))
    spectrum = torch.fft.rfft(emphasised, n=FFT_SIZE)
    power = spectrum.real.square() + spectrum.imag.square()
    traced = torch.compiler.is_compiling()
    with contextlib.nullcontext() if traced else _exact_products(windows):
        energies = power[..., : FFT_SIZE // 2] @ mel_filters(windows.device)
    return energies.clamp(min=torch.finfo(torch.float32).eps).log()


@contextlib.contextmanager
def _exact_products(x: torch.Tensor) -> Iterator[None]:
    """Keep float32 products on a GPU from TF32, whose 10 bits would show in log-mel."""
    before = torch.get_float32_matmul_precision()
    if before == "highest" or not x.is_cuda:
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def zero_padding(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Zeros beyond each clip's length (B,) in the second dimension of `x`."""
    real = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
    return torch.where(real.view(*real.shape, *[1] * (x.dim() - 2)), x, 0.0)


_WINDOW = torch.hann_window(FRAME_LENGTH, False)
_FILTERS = {}


def mel_filters(device: torch.device) -> torch.Tensor:
    """Triangular mel filters (256 FFT bins, 128), computed once per device."""
    if torch.compiler.is_compiling():  # a traced tensor must not stay in the cache
        return _FILTERS[torch.device("cpu")].to(device)
    if device not in _FILTERS:
        _FILTERS[device] = _triangles().to(device)
    return _FILTERS[device]


def _triangles() -> torch.Tensor:
    """Kaldi's mel filters (256, 128): triangles over mel(f) = 1127 ln(1 + f / 700).

    As torchaudio computes them, to the bit. (Importing torchaudio fails beside a torch
    that is much older, or built for another CUDA.)
    """
    low, high = (
        1127.0 * math.log(1.0 + f / 700.0) for f in (LOWEST_FREQUENCY, SAMPLE_RATE / 2)
    )
    step = (high - low) / (NUM_MEL_BINS + 1)
    number = torch.arange(NUM_MEL_BINS)[:, None]
    left, centre, right = (low + (number + k) * step for k in (0, 1.0, 2.0))
    hertz = SAMPLE_RATE / FFT_SIZE * torch.arange(FFT_SIZE // 2)
    mel = 1127.0 * (1.0 + hertz / 700.0).log()[None]
    rising, falling = (mel - left) / (centre - left), (right - mel) / (right - centre)
    return rising.minimum(falling).clamp(min=0).T.contiguous()


mel_filters(torch.device("cpu"))  # for `torch.compile` and `torch.export`


def checked_fbank(
    fbank: torch.Tensor, frames: torch.Tensor | Sequence[int] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Given log-mel (B, T, 128) with zeros beyond each clip's end, and frames (B,).

    Raises:
        ValueError: Another type or shape; see `checked_lengths`.
    """
    if fbank.dim() != 3 or fbank.shape[-1] != NUM_MEL_BINS:
        raise ValueError(
            f"need log-mel of shape (B, T, {NUM_MEL_BINS}), got "
            f"{tuple(fbank.shape)}; set input_size: 1 for waveforms"
        )
    if not fbank.is_floating_point():
        raise ValueError(f"need log-mel of real numbers, got {fbank.dtype}")
    frames = checked_lengths(frames, fbank, 1)
    return zero_padding(fbank, frames), frames


def fit_frames(fbank: torch.Tensor, target: int) -> torch.Tensor:
    """Zero-pad at the end, or keep the first, to exactly `target` frames.

    Args:
        fbank: (B, T, 128), before the normalisation as the authors do it.
        target: Frames wanted.

    Returns:
        (B, target, 128).
    """
    if torch.compiler.is_compiling():  # whichever is longer
        return F.pad(fbank, (0, 0, 0, target))[:, :target]
    return F.pad(fbank[:, :target], (0, 0, 0, max(0, target - fbank.shape[1])))


class LogMel(torch.nn.Module):
    """Normalised log-mel; the mean and std live in the checkpoint.

    `mean` and `std` left out mean "those of the checkpoint that is loaded, else
    AudioSet's". Given values that differ from a loaded checkpoint's are an error
    unless `override` says that they are meant.

    Args:
        mean: Mean of the un-normalised log-mel.
        std: Its standard deviation; the output is `(x - mean) / (2 * std)`.
        override: Keep the given values whatever a loaded checkpoint holds.

    Raises:
        ValueError: One of mean and std without the other, std not positive, or
            (when loading) a checkpoint with other values.
    """

    def __init__(
        self,
        mean: float | None = None,
        std: float | None = None,
        override: bool = False,
    ):
        super().__init__()
        if (mean is None) != (std is None):
            raise ValueError("give fbank_mean and fbank_std together, or neither")
        if std is not None and not std > 0:
            raise ValueError(f"fbank_std must be positive, got {std}")
        if override and mean is None:
            raise ValueError("override_fbank_stats needs fbank_mean and fbank_std")
        self.explicit = mean is not None
        self.override = override
        self.mean: torch.Tensor
        self.std: torch.Tensor
        values = (mean, std) if self.explicit else (AUDIOSET_MEAN, AUDIOSET_STD)
        for name, value in zip(("mean", "std"), values, strict=True):
            self.register_buffer(name, torch.tensor(value))
        self.register_load_state_dict_pre_hook(_before_loading)

    def forward(
        self, speech: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Waveforms (B, N) to normalised log-mel (B, T, 128) and frames (B,)."""
        fbank, frames = kaldi_fbank(speech, lengths)
        return self.normalize(fbank), frames

    def normalize(self, fbank: torch.Tensor) -> torch.Tensor:
        """`(x - mean) / (2 * std)` of an un-normalised log-mel of any shape."""
        return (fbank.float() - self.mean.float()) / (2 * self.std.float())


def _before_loading(log_mel: LogMel, state_dict: dict, prefix: str, *_: Any) -> None:
    """Keep or refuse, as asked, the mean and std of a checkpoint that is loaded."""
    names = [prefix + "mean", prefix + "std"]
    if not all(name in state_dict for name in names):
        return
    own = [float(log_mel.mean), float(log_mel.std)]
    new = [float(state_dict[name]) for name in names]
    differs = any(
        abs(a - b) > 1e-4 * max(1.0, abs(b)) for a, b in zip(own, new, strict=True)
    )
    if log_mel.override:
        if differs:
            logging.warning(
                "fbank mean/std %s kept as asked; the checkpoint has %s", own, new
            )
        values = (log_mel.mean.detach().clone(), log_mel.std.detach().clone())
        state_dict.update(zip(names, values, strict=True))
    elif log_mel.explicit and differs:
        raise ValueError(
            f"fbank mean/std are {own} in the config, {new} in the checkpoint: "
            "leave fbank_mean and fbank_std out to use the checkpoint's, or "
            "set override_fbank_stats: true if the config's are meant"
        )
    else:
        logging.info("fbank mean/std of the loaded model: %.4f, %.4f", *new)
