"""SSLAM as s3prl wants an upstream: a list of waveforms in, hidden states out.

Shapes: B clips, T steps, D channels.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from espnet2_sslam.checkpoint import load_model
from espnet2_sslam.encoder import SSLAMEncoder
from espnet2_sslam.features import num_patch_steps, zero_padding
from espnet2_sslam.units import FRAME_LENGTH, FRAME_SHIFT, PATCH_SIZE, PATCHES_PER_STEP

STEP = PATCH_SIZE * FRAME_SHIFT  # samples of a time patch: 2560, 160 ms
SIZES = ("embed_dim", "depth", "num_heads", "mlp_ratio", "seed")
ENCODER = ("max_frames", "drop_path", "fbank_mean", "fbank_std", "override_fbank_stats")
LOADING = ("weights", "revision", "cache_dir")
SHAPE = ("freq", "upsample", "layers", "target_frames")
OPTIONS = (*SHAPE, *LOADING, *ENCODER, *SIZES)


def read_options(
    model_config: str | Path | Mapping | None, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Options of an upstream from a YAML file (or mapping) and from keywords.

    freq: "concat" (8 * D per step), "mean" (D) or "flatten" (8 steps of 20 ms, which
        are the frequency bands of the same 160 ms).
    upsample: Repeat each step so many times (a divisor of 2560): 8 gives steps of
        20 ms for tasks that need them. The resolution stays 160 ms.
    layers: Which hidden states, 0 the patch embedding; all by default.
    target_frames: Encode in windows of so many frames (a multiple of 16), the last one
        padded and the padding attended to, as in pre-training (1024). By default
        every clip has its own length.
    weights: "student" or "teacher" (EMA), where the source holds both.
    revision, cache_dir: As for `espnet2_sslam.checkpoint.load_model`.
    max_frames, drop_path, fbank_*: As for `SSLAMEncoder`.
    embed_dim, depth, num_heads, mlp_ratio, seed: Random weights, without a ckpt only.

    Raises:
        ValueError: An option with another name, or a file that holds no mapping.
    """
    options = {}
    if isinstance(model_config, Mapping):
        options = dict(model_config)
    elif model_config is not None:
        path = Path(model_config).expanduser()
        if not path.is_file():
            raise ValueError(f"model_config {path} is not a file")
        options = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if not isinstance(options, dict):
            raise ValueError(f"{path} must hold options, one `name: value` per line")
    options = {**options, **given}
    unknown = sorted(set(options) - set(OPTIONS), key=str)
    if unknown:
        raise ValueError(
            f"sslam has no option {', '.join(map(str, unknown))}; it has "
            f"{', '.join(sorted(OPTIONS))}"
        )
    return options


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
        options = read_options(model_config, options)
        shape = {name: options.pop(name, None) for name in SHAPE}
        upsample = 1 if shape["upsample"] is None else shape["upsample"]
        freq = shape["freq"] or "concat"
        if type(upsample) is not int or upsample < 1 or STEP % upsample:
            raise ValueError(f"upsample must divide {STEP}, got {upsample!r}")
        if freq == "flatten" and upsample != 1:
            raise ValueError("upsample is for freq: concat or mean, not for flatten")
        options.update(freq=freq, upsample=upsample)
        self.encoder = _encoder(ckpt, refresh, options).eval()
        self.rate = STEP // (PATCHES_PER_STEP if freq == "flatten" else upsample)
        self.layers = _checked_layers(shape["layers"], self.encoder.config.depth)
        self.last = max(1, self.layers[-1])  # no need to run the blocks after it
        self.target_frames = _checked_window(
            shape["target_frames"], self.encoder.config.max_frames
        )

    def get_downsample_rates(self, key: str = "hidden_states") -> int:
        """Samples per step, the same for every key."""
        return self.rate

    def forward(
        self, wavs: list[torch.Tensor]
    ) -> dict[str, torch.Tensor | list[torch.Tensor]]:
        """Hidden states of a batch.

        Args:
            wavs: Waveforms (samples,) at 16 kHz in [-1, 1], of any lengths.

        Returns:
            `hidden_states`: a list of (B, T, D or 8 * D), the patch embedding and
            every block, T = ceil(longest / rate), zero beyond a clip's last step;
            `last_hidden_state`; and each as `hidden_state_<number>`.
        """
        wavs = [_lengthened(wav) for wav in wavs]
        lengths = torch.tensor([len(wav) for wav, _ in wavs])
        steps = torch.tensor([-(-samples // self.rate) for _, samples in wavs])
        speech = pad_sequence([wav for wav, _ in wavs], batch_first=True)
        lengths, steps = lengths.to(speech.device), steps.to(speech.device)
        if self.target_frames is None:
            states, patch_steps = self.encoder.hidden_states(
                speech, lengths, max_layer=self.last
            )
        else:
            states, patch_steps = self._windows(speech, lengths)
        shaped = []
        for layer in self.layers:
            state, _ = self.encoder.shaped(states[layer], patch_steps)
            shaped.append(zero_padding(state[:, : int(steps.max())], steps))
        named = {f"hidden_state_{i}": state for i, state in zip(self.layers, shaped)}
        return {"hidden_states": shaped, "last_hidden_state": shaped[-1], **named}

    def _windows(self, speech, lengths):
        """Hidden states from windows of `target_frames`, padding attended to."""
        encoder, batch = self.encoder, len(speech)
        fbank, frames = encoder.fbank(speech, lengths)
        padding = float(encoder.log_mel.normalize(torch.zeros(())))
        missing = -fbank.shape[1] % self.target_frames
        fbank = F.pad(fbank, (0, 0, 0, missing), value=padding)
        windows = fbank.reshape(-1, self.target_frames, fbank.shape[-1])
        patches = encoder.embed(windows)
        hidden = encoder.encode(patches, None, self.last, collect=True).hidden
        joined = []
        for tokens in hidden:  # the CLS token of the first window stands for all
            patches = tokens[:, 1:].reshape(batch, -1, tokens.shape[-1])
            first = tokens[:: len(tokens) // batch, :1]
            joined.append(torch.cat([first, patches], 1))
        return joined, num_patch_steps(frames)


def _encoder(ckpt, refresh, options) -> SSLAMEncoder:
    """The encoder of a checkpoint, or one with random weights."""
    sizes = {name: options.pop(name) for name in SIZES if name in options}
    loading = {name: options.pop(name) for name in LOADING if name in options}
    if ckpt is not None:
        if sizes:
            raise ValueError(
                f"{', '.join(sizes)} are for random weights; {ckpt} has its own sizes"
            )
        source = _download(str(ckpt), refresh)
        return load_model(source, **loading, target_frames=None, **options).encoder
    if loading or not set(sizes) & {"embed_dim", "depth"}:
        raise ValueError(
            "sslam needs weights: give a folder, file, Hugging Face id or URL as ckpt "
            "(-k in run_downstream, path_or_url in S3PRLUpstream), or for random "
            "weights their sizes (embed_dim, depth, num_heads)"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sizes.pop("seed", 0))
        return SSLAMEncoder(**sizes, **options)


def _download(source: str, refresh: bool) -> str:
    """The source itself, or the local copy of an http address."""
    if not source.startswith(("http://", "https://")):
        return source
    page = source.removeprefix("https://huggingface.co/").strip("/")
    if page.count("/") == 1:  # user/repo
        return page
    from s3prl.util.download import _urls_to_filepaths

    try:
        return _urls_to_filepaths(source, refresh=bool(refresh))
    except (OSError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{source} cannot be downloaded: {reason}") from error


def _lengthened(wav: torch.Tensor):
    """A clip with at least one frame in each of its steps, and its own length."""
    samples = len(wav)
    if wav.dim() != 1 or samples == 0:
        raise ValueError(f"need clips of shape (samples,), got {tuple(wav.shape)}")
    needed = (samples - 1) // STEP * STEP + FRAME_LENGTH
    if samples >= needed:
        return wav, samples
    # without its mean, which the padding would shift
    return F.pad(wav - wav.mean(), (0, needed - samples)), samples


def _checked_layers(layers: list[int] | None, depth: int) -> list[int]:
    """The layers to give out, in order."""
    if layers is None:
        return list(range(depth + 1))
    layers = layers if isinstance(layers, (list, tuple)) else [layers]
    right = all(type(n) is int and -depth - 1 <= n <= depth for n in layers)
    if not layers or not right:
        raise ValueError(f"layers must be numbers in 0..{depth}, got {layers}")
    return sorted({layer % (depth + 1) for layer in layers})


def _checked_window(frames: int | None, max_frames: int) -> int | None:
    """`target_frames`, or an error."""
    right = type(frames) is int and 0 < frames <= max_frames and not frames % PATCH_SIZE
    if frames is not None and not right:
        raise ValueError(
            f"target_frames must be a multiple of {PATCH_SIZE} up to {max_frames}, "
            f"got {frames!r}"
        )
    return frames
