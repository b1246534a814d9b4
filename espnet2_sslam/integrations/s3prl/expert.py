"""SSLAM as s3prl wants an upstream: a list of waveforms in, hidden states out.

All upstreams take what s3prl's callers give: `ckpt` (-k, path_or_url), `model_config`
(-g: a YAML file of options), `refresh` (-r) and options by name (extra_conf).

Shapes: B clips, T steps, D channels.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from espnet2_sslam.checkpoint import load_model
from espnet2_sslam.config import SIZES, EncoderConfig, check_choice
from espnet2_sslam.encoder import EncoderOutput, SSLAMEncoder, interleaved
from espnet2_sslam.features import scaled, zero_padding
from espnet2_sslam.store import read_yaml
from espnet2_sslam.units import (
    FRAME_LENGTH,
    FRAME_SHIFT,
    PATCH_SIZE,
    PATCHES_PER_STEP,
    TIME_SHIFTS,
)

STEP = PATCH_SIZE * FRAME_SHIFT  # samples of a time patch: 2560, 160 ms
# Options of the encoder that s3prl's interface decides: waveforms in, all layers out.
DECIDED = {"input_size", "cls_token", "layer", "max_layer"}
LOADING = {"weights", "revision", "cache_dir"}
RANDOM = {*SIZES, "seed"} - {"max_frames"}  # a checkpoint brings its own
OPTIONS = sorted(
    {field.name for field in dataclasses.fields(EncoderConfig)} - DECIDED
    | {"layers", "seed"}
    | LOADING
)


def read_options(
    model_config: str | Path | Mapping | None, keywords: Mapping[str, Any]
) -> dict[str, Any]:
    """Options of an upstream from a YAML file (or mapping) and keywords, which win.

    freq: "concat" (8 * D per step), "mean" (D) or "flatten" (8 steps of 20 ms, which
        are the frequency bands of the same 160 ms).
    time_shifts: Make steps so many times (2, 4, 8 or 16) finer, at so many times the
        cost: 8 gives steps of 20 ms that differ.
    upsample: Repeat each step so many times (a divisor of 2560): 8 gives steps of
        20 ms for tasks that need them. The resolution stays that of time_shifts.
    layers: Which hidden states, 0 the patch embedding; all by default.
    target_frames: Encode in windows of so many frames (a multiple of 16), the last one
        padded and the padding attended to, as in pre-training (1024). By default
        every clip has its own length.
    weights, revision, cache_dir: As for `espnet2_sslam.checkpoint.load_model`.
    embed_dim, depth, num_heads, mlp_ratio, seed: Random weights, without a ckpt only.
    Others: As for `EncoderConfig`.

    Raises:
        ValueError: An option with another name, or a file that holds no mapping.
    """
    options: Any = model_config or {}
    if not isinstance(options, Mapping):
        path = Path(options).expanduser()
        if not path.is_file():
            raise ValueError(f"model_config {path} is not a file")
        options = read_yaml(path)
    options = {**options, **keywords}
    unknown = sorted(map(str, options.keys() - set(OPTIONS)))
    if unknown:
        raise ValueError(
            f"sslam has no option {', '.join(unknown)}; it has {', '.join(OPTIONS)}"
        )
    return {name: value for name, value in options.items() if value is not None}


def samples_per_step(
    freq: str = "concat", upsample: int = 1, time_shifts: int = 1, **others: Any
) -> int:
    """Samples between two steps of an upstream with these options.

    Raises:
        ValueError: `upsample` that gives no whole number, or beside freq: flatten;
            another value of `time_shifts` than can be.
    """
    check_choice("time_shifts", time_shifts, TIME_SHIFTS)
    step = STEP // time_shifts
    if type(upsample) is not int or upsample < 1 or step % upsample:
        raise ValueError(f"upsample must divide {step}, got {upsample!r}")
    if freq == "flatten" and upsample != 1:
        raise ValueError("upsample is for freq: concat or mean, not for flatten")
    return step // (PATCHES_PER_STEP if freq == "flatten" else upsample)


class UpstreamExpert(nn.Module):
    """An encoder behind s3prl's interface.

    Args:
        ckpt: Folder, file, Hugging Face id or URL of a model. Without it an encoder
            with random weights, of the sizes in the options.
        model_config: YAML file (or mapping) with options.
        refresh: Download a URL again.
        options: See `read_options`.

    Raises:
        ValueError: No weights and no sizes, or an option outside its range.
    """

    def __init__(
        self,
        ckpt: str | Path | None = None,
        model_config: str | Path | Mapping | None = None,
        refresh: bool = False,
        **options: Any,
    ):
        super().__init__()
        options = {"freq": "concat", **read_options(model_config, options)}
        self.rate = samples_per_step(**options)
        layers = options.pop("layers", None)
        self.target_frames = options.pop("target_frames", None)
        self.encoder = _encoder(ckpt, refresh, options).eval()
        config = self.encoder.config
        config.replace(target_frames=self.target_frames)  # raises if impossible
        self.layers = _checked_layers(layers, config.depth)
        # no need to run the blocks after the last layer
        self.encoder.config = config.replace(max_layer=max(1, self.layers[-1]))

    def get_downsample_rates(self, key: str = "hidden_states") -> int:
        """Samples per step, the same for every key."""
        return self.rate

    def forward(
        self, wavs: list[torch.Tensor]
    ) -> dict[str, torch.Tensor | list[torch.Tensor]]:
        """Hidden states of a batch.

        Args:
            wavs: Waveforms (samples,) at 16 kHz, of any lengths: floats in [-1, 1] or
                integers of `config.SCALES`.

        Returns:
            `hidden_states`: a list of (B, T, D or 8 * D), the patch embedding and
            every block, T = ceil(longest / rate), zero beyond a clip's last step;
            `last_hidden_state`; and each as `hidden_state_<number>`.

        Raises:
            ValueError: No clips, or samples that `features.checked_waves` refuses.
        """
        if len(wavs) == 0:
            raise ValueError("need a list of clips, got none")
        steps = torch.tensor([-(-len(wav) // self.rate) for wav in wavs])
        patch_hop = STEP // self.encoder.config.time_shifts
        wavs = [_lengthened(wav, patch_hop) for wav in wavs]
        speech = pad_sequence(wavs, batch_first=True)
        lengths = torch.tensor([len(wav) for wav in wavs], device=speech.device)
        steps = steps.to(speech.device)
        if self.target_frames is None:
            output = self.encoder.hidden_states(speech, lengths, "all")
        else:
            output = self._windows(speech, lengths)
        states = []
        for layer in self.layers:
            state, _ = self.encoder.shaped(output.layers[layer], output.steps)
            states.append(zero_padding(state[:, : int(steps.max())], steps))
        pairs = zip(self.layers, states, strict=True)
        named = {f"hidden_state_{layer}": state for layer, state in pairs}
        return {"hidden_states": states, "last_hidden_state": states[-1], **named}

    def _windows(self, speech: torch.Tensor, lengths: torch.Tensor) -> EncoderOutput:
        """Hidden states from windows of `target_frames`, padding attended to."""
        encoder, batch = self.encoder, len(speech)
        fbank, frames = encoder.fbank(speech, lengths)
        padding = float(encoder.log_mel.normalize(torch.zeros(())))
        missing = -fbank.shape[1] % self.target_frames
        fbank = F.pad(fbank, (0, 0, 0, missing), value=padding)
        shifts, num_steps = encoder.config.time_shifts, fbank.shape[1] // PATCH_SIZE
        passes = []
        for part, _ in encoder.shifted(fbank, frames, shifts, num_steps):
            windows = part.reshape(-1, self.target_frames, part.shape[-1])
            joined = []
            for tokens in encoder.encode(encoder.embed(windows), collect=True).layers:
                patches = tokens[:, 1:].reshape(batch, -1, tokens.shape[-1])
                # the CLS token of the first window stands for all
                first = tokens[:: len(tokens) // batch, :1]
                joined.append(torch.cat([first, patches], 1))
            passes.append(EncoderOutput(joined[-1], joined, [], frames=frames))
        return interleaved(passes)


def _encoder(
    ckpt: str | Path | None, refresh: bool, options: dict[str, Any]
) -> SSLAMEncoder:
    """The encoder of a checkpoint, or one with random weights."""
    loading = {name: options.pop(name) for name in LOADING & options.keys()}
    sizes = sorted(RANDOM & options.keys())
    if ckpt is not None:
        if sizes:
            raise ValueError(
                f"{', '.join(sizes)} are for random weights; {ckpt} has its own sizes"
            )
        source = _download(str(ckpt), refresh)
        return load_model(source, **loading, target_frames=None, **options).encoder
    if loading or not {"embed_dim", "depth"} & options.keys():
        raise ValueError(
            "sslam needs weights: give a folder, file, Hugging Face id or URL as ckpt "
            "(-k in run_downstream, path_or_url in S3PRLUpstream), or for random "
            "weights their sizes (embed_dim, depth, num_heads)"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.pop("seed", 0))
        return SSLAMEncoder(**options)


def _download(source: str, refresh: bool) -> str:
    """The source itself, or the local copy of an http address."""
    if not source.startswith(("http://", "https://")):
        return source
    page = source.removeprefix("https://huggingface.co/").strip("/")
    if page.count("/") == 1:  # user/repo
        return page
    from s3prl.util.download import _urls_to_filepaths  # type: ignore[import]

    try:
        return str(_urls_to_filepaths(source, refresh=bool(refresh)))
    except (OSError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{source} cannot be downloaded: {reason}") from error


def _lengthened(wav: torch.Tensor, patch_hop: int) -> torch.Tensor:
    """A clip with at least one frame in each patch, of which one begins every hop."""
    samples = len(wav)
    if wav.dim() != 1 or samples == 0:
        raise ValueError(f"need clips of shape (samples,), got {tuple(wav.shape)}")
    wav = scaled(wav)
    needed = (samples - 1) // patch_hop * patch_hop + FRAME_LENGTH
    if samples >= needed:
        return wav
    # without its mean, which the padding would shift
    return F.pad(wav - wav.mean(), (0, needed - samples))


def _checked_layers(layers: int | list[int] | None, depth: int) -> list[int]:
    """The layers to give out, in order."""
    if layers is None:
        return list(range(depth + 1))
    layers = list(layers) if isinstance(layers, (list, tuple)) else [layers]
    if not layers or not all(
        type(layer) is int and -depth - 1 <= layer <= depth for layer in layers
    ):
        raise ValueError(f"layers must be numbers in 0..{depth}, got {layers}")
    return sorted({layer % (depth + 1) for layer in layers})


def sslam(ckpt=None, model_config=None, refresh=False, **options):
    """SSLAM, the frequency patches of a step side by side: 8 * D per 160 ms.

    See `UpstreamExpert`.
    """
    return UpstreamExpert(ckpt, model_config, refresh, **options)


def sslam_mean(ckpt=None, model_config=None, refresh=False, **options):
    """SSLAM, the mean over the frequency patches of a step: D per 160 ms."""
    return sslam(ckpt, model_config, refresh, **{"freq": "mean", **options})


# `sslam` takes any checkpoint; s3prl has names for one on disk, behind a URL and any.
UPSTREAMS = {
    "sslam": sslam,
    "sslam_mean": sslam_mean,
    **dict.fromkeys(("sslam_local", "sslam_url", "sslam_custom"), sslam),
}


def register(hub: ModuleType) -> None:
    """Add our upstreams to `s3prl.hub`; again is harmless.

    Raises:
        ValueError: Something else has one of the names.
    """
    for name, upstream in UPSTREAMS.items():
        known = getattr(hub, name, upstream)
        if known is not upstream:
            raise ValueError(
                f"{hub.__name__} has another upstream named {name} "
                f"(of {getattr(known, '__module__', known)}): remove one of the two"
            )
    vars(hub).update(UPSTREAMS)
