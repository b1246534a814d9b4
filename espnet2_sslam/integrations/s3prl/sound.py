"""What s3prl uses of torchaudio's files and SoX effects, with soundfile and soxr."""

from typing import NamedTuple

import soundfile
import soxr
import torch

WAV_SUBTYPES = {  # what torchaudio writes for a tensor's type
    torch.float32: "FLOAT",
    torch.float64: "DOUBLE",
    torch.int32: "PCM_32",
    torch.int16: "PCM_16",
    torch.uint8: "PCM_U8",
}
BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
BITS.update(FLOAT=32, DOUBLE=64)
FORMATS = {"FLOAT": "PCM_F", "DOUBLE": "PCM_F", "PCM_U8": "PCM_U"}
EFFECTS = "channels, rate, gain, vol and norm"


class AudioInfo(NamedTuple):
    """What `torchaudio.info` returned."""

    sample_rate: int
    num_frames: int
    num_channels: int
    bits_per_sample: int
    encoding: str


def load(
    uri,
    frame_offset: int = 0,
    num_frames: int = -1,
    normalize: bool = True,
    channels_first: bool = True,
    format: str | None = None,
    buffer_size: int = 4096,
    backend: str | None = None,
) -> tuple[torch.Tensor, int]:
    """Audio in [-1, 1], (channels, samples), and its sampling rate.

    Arguments as `torchaudio.load`; `format`, `buffer_size` and `backend` are ignored.

    Raises:
        ValueError: `normalize=False` (integer samples), which s3prl does not use.
    """
    if not normalize:
        raise ValueError("torchaudio.load without torchcodec needs normalize=True")
    samples, rate = soundfile.read(
        uri, num_frames, frame_offset, dtype="float32", always_2d=True
    )
    wave = torch.from_numpy(samples)
    return (wave.T.contiguous() if channels_first else wave), rate


def save(
    uri,
    src: torch.Tensor,
    sample_rate: int,
    channels_first: bool = True,
    format: str | None = None,
    **options,
) -> None:
    """Write (channels, samples), a WAV in the tensor's own type as torchaudio did.

    Raises:
        ValueError: Options of `torchaudio.save` that are not supported here.
    """
    if set(options) - {"backend", "buffer_size", "compression"}:
        raise ValueError(f"torchaudio.save without torchcodec takes no {set(options)}")
    samples = (src.T if channels_first else src).detach().cpu()
    wav = (format or str(uri).rpartition(".")[2]).lower() == "wav"
    subtype = WAV_SUBTYPES[src.dtype] if wav else None
    soundfile.write(uri, samples.numpy(), sample_rate, subtype=subtype, format=format)


def info(uri, format: str | None = None, **options) -> AudioInfo:
    """Rate, length, channels and encoding of a file; other arguments are ignored."""
    found = soundfile.info(uri)
    return AudioInfo(
        found.samplerate,
        found.frames,
        found.channels,
        BITS.get(found.subtype, 0),
        FORMATS.get(
            found.subtype, "PCM_S" if "PCM" in found.subtype else found.subtype
        ),
    )


def apply_effects_file(
    path,
    effects: list[list[str]],
    normalize: bool = True,
    channels_first: bool = True,
    format: str | None = None,
) -> tuple[torch.Tensor, int]:
    """A file with SoX effects applied; see `apply_effects_tensor`."""
    wave, rate = load(path, normalize=normalize)
    return apply_effects_tensor(wave, rate, effects, channels_first)


def apply_effects_tensor(
    tensor: torch.Tensor,
    sample_rate: int,
    effects: list[list[str]],
    channels_first: bool = True,
) -> tuple[torch.Tensor, int]:
    """A waveform with SoX effects applied one after the other.

    Raises:
        ValueError: An effect other than channels, rate, gain, vol and norm.
    """
    wave, rate = tensor if channels_first else tensor.T, sample_rate
    for name, *arguments in effects:
        wave, rate = _apply(wave, rate, name, *arguments)
        wave = wave.clamp(-1, 1)
    return (wave if channels_first else wave.T), rate


def _apply(wave, rate, name, *arguments):
    """One effect, or an error that names it."""
    try:
        [value] = [float(argument) for argument in arguments]
        effect = _EFFECTS[name]
    except (KeyError, ValueError):
        raise ValueError(
            f"the SoX effect {' '.join([name, *arguments])!r} needs torchaudio before "
            f"2.9 with libsox (Debian: libsox-dev); without it: {EFFECTS}, each with "
            "one number"
        ) from None
    return effect(wave, rate, value)


def _channels(wave, rate, number):
    if number == 1:
        return wave.mean(0, keepdim=True), rate
    if len(wave) in (1, number):
        return wave.expand(int(number), -1), rate
    raise ValueError(f"cannot make {int(number)} channels of {len(wave)}")


def _rate(wave, rate, target):
    if rate == target:
        return wave, rate
    samples = soxr.resample(wave.T.numpy(), rate, target, quality="HQ")
    return torch.from_numpy(samples).T.contiguous(), int(target)


def _gain(wave, rate, decibel):
    return wave * 10 ** (decibel / 20), rate


def _vol(wave, rate, factor):
    return wave * factor, rate


def _norm(wave, rate, decibel):
    peak = wave.abs().max()
    return (wave * 10 ** (decibel / 20) / peak if peak > 0 else wave), rate


_EFFECTS = dict(channels=_channels, rate=_rate, gain=_gain, vol=_vol, norm=_norm)
