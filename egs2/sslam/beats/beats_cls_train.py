#!/usr/bin/env python3
"""Fine-tune BEATs, or train a head on it, with the configs of SSLAM to compare both.

BEATs is ESPnet's own encoder, with a checkpoint as its authors publish it (`cfg` and
`model`). Of encoder_conf, drop_path is its rate of dropped layers; the rest is SSLAM's
and has no effect: BEATs keeps its log-mel, its mean and std, and every clip its length.
Dropout is 0, but in the attention, where it is the checkpoint's
(espnet/espnet@170b673, egs2/as20k/cls1/conf/beats_cls.yaml).
"""

import argparse
import importlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from espnet2_sslam.augment import Augmentation
from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.checkpoint import read_pickle
from espnet2_sslam.classifier import SSLAMClassifier
from espnet2_sslam.config import EncoderConfig
from espnet2_sslam.encoder import EncoderOutput, real_patches
from espnet2_sslam.features import checked_waves, num_frames, zero_padding
from espnet2_sslam.tasks import SSLAMClassificationTask, read_classes
from espnet2_sslam.units import PATCH_SIZE

SHORTEST = 3200  # samples; of fewer than 2800 there is no patch
LONGEST = 2**18  # frames: its positions are relative

REGULARISATION = {
    **dict.fromkeys(("dropout", "dropout_input", "activation_dropout"), 0.0),
    "layer_wise_gradient_decay_ratio": 1.0,  # layer_decay of optim_groups_conf does it
}


def beats_module() -> Any:
    """ESPnet's module with the encoder, by its name in 202611 or 202511."""
    try:
        return importlib.import_module("espnet2.beats.encoder")
    except ModuleNotFoundError:
        return importlib.import_module("espnet2.asr.encoder.beats_encoder")


def espnet_encoder(checkpoint: str, layerdrop: float = 0.0) -> nn.Module:
    """Build ESPnet's BEATs encoder, to be fine-tuned, with a checkpoint's weights."""
    content = read_pickle(checkpoint)
    if not isinstance(content, Mapping) or not {"cfg", "model"} <= set(content):
        raise ValueError(
            f"{checkpoint} is not a BEATs checkpoint: it must hold `cfg` and `model`"
        )
    config = {**content["cfg"], **REGULARISATION, "encoder_layerdrop": layerdrop}
    encoder = beats_module().BeatsEncoder(1, beats_config=config)
    keys = encoder.load_state_dict(content["model"], strict=False)
    # The fbank and padding convolutions of newer ESPnets hold no learnt weights.
    missing = [key for key in keys.missing_keys if "_pad." not in key]
    extra = [key for key in keys.unexpected_keys if not key.startswith("predictor")]
    if missing or extra:
        raise ValueError(
            f"{checkpoint} does not fit ESPnet's BEATs: missing {missing[:3]}, "
            f"unknown {extra[:3]}"
        )
    return encoder


class BeatsTokens(nn.Module):
    """What SSLAMClassifier asks of an encoder, answered by BEATs.

    Padding takes no part. The mean of a clip's patches stands in the place of the CLS
    token, which BEATs does not have.

    Args:
        encoder: ESPnet's BEATs encoder.
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.beats: Any = encoder
        self.config = EncoderConfig(
            embed_dim=self.beats.output_size(),
            depth=len(self.blocks),
            num_heads=1,
            max_frames=LONGEST,
        )

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers, for layer-wise decay of the learning rate."""
        return self.beats.encoder.layers

    def fbank(
        self, speech: torch.Tensor, lengths: torch.Tensor, checked: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """BEATs' own normalised log-mel (B, T, 128) of waveforms, and frames (B,).

        Clips too short for a patch are repeated.
        """
        if not checked:
            speech, lengths = checked_waves(speech, lengths)
        clips = [clip[:length] for clip, length in zip(speech, lengths, strict=True)]
        clips = [clip.repeat(max(1, -(-SHORTEST // len(clip)))) for clip in clips]
        lengths = torch.tensor([len(clip) for clip in clips], device=speech.device)
        with torch.autocast(speech.device.type, enabled=False):
            padded = nn.utils.rnn.pad_sequence(clips, batch_first=True).float()
            frames = num_frames(lengths)
            return zero_padding(self.beats.preprocess(padded), frames), frames

    def draw_drop_path(self, num_clips: int, generator: Any = None) -> None:
        """Nothing: BEATs draws what it drops by itself, from the global generators."""

    def encode_fbank(
        self,
        fbank: torch.Tensor,
        frames: torch.Tensor,
        *,
        collect: bool = False,
        drop_path_draws: None = None,
    ) -> EncoderOutput:
        """Tokens (B, 1+N, D) of such log-mel, as `SSLAMEncoder.encode_fbank`.

        A patch that is not whole is left out, as BEATs does.
        """
        beats = self.beats
        steps = frames // PATCH_SIZE
        x = beats.patch_embedding(fbank[:, None, : int(steps.max()) * PATCH_SIZE])
        x = beats.layer_norm(x.flatten(2).transpose(1, 2))
        if beats.post_extract_proj is not None:
            x = beats.post_extract_proj(x)
        real = real_patches(steps * PATCH_SIZE, x.shape[1])
        last = len(self.blocks) - 1 if collect else None  # collects what comes before
        x, results = beats.encoder(
            beats.dropout_input(x), padding_mask=~real, layer=last
        )
        layers = [self._with_mean(y.transpose(0, 1), real) for y, _ in results]
        return EncoderOutput(
            self._with_mean(x, real), layers, [], real, steps * PATCH_SIZE
        )

    def hidden_states(
        self,
        speech: torch.Tensor,
        lengths: torch.Tensor,
        layer: int | str = -1,
        time_shifts: int = 1,
    ) -> EncoderOutput:
        """Tokens of waveforms, as `SSLAMEncoder.hidden_states` without shifts."""
        return self.encode_fbank(*self.fbank(speech, lengths), collect=layer == "all")

    @staticmethod
    def _with_mean(x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Patches (B, N, D), zero where they are padding, behind their mean."""
        x = torch.where(real[..., None], x, 0.0)
        return torch.cat([x.sum(1, True) / real.sum(1)[:, None, None], x], 1)


class BeatsClassifier(SSLAMClassifier):
    """SSLAMClassifier on BEATs."""

    def checkpoint_activations(self, parts):
        raise ValueError("BEATs has no --activation_checkpointing here")

    def compile_step(self, **options):
        raise ValueError("ESPnet's BEATs cannot be compiled: leave --compile at false")


def classifier_from_config(config: Mapping[str, Any]) -> BeatsClassifier:
    """Build the classifier that a training configuration describes."""
    layerdrop = config["encoder_conf"].get("drop_path", 0.0)
    beats = espnet_encoder(config["beats_checkpoint"], layerdrop)
    encoder: Any = BeatsTokens(beats)  # answers as SSLAMEncoder does
    return BeatsClassifier(
        encoder,
        config["class_list"],
        augmentation=Augmentation(**config["augment_conf"]),
        seed=config["seed"],
        **config["model_conf"],
    )


class BeatsClassificationTask(SSLAMClassificationTask):
    """Fine-tune BEATs, or train a head on it."""

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the checkpoint to the options of classification."""
        super().add_task_arguments(parser)
        parser.add_argument("--beats_checkpoint", help="BEATs .pt file")

    @classmethod
    def check_configuration(cls, args: argparse.Namespace) -> None:
        """Refuse what is only for SSLAM's encoder."""
        if args.beats_checkpoint is None:
            raise ValueError("--beats_checkpoint is needed: a BEATs .pt file")
        if not Path(args.beats_checkpoint).is_file():
            raise ValueError(f"--beats_checkpoint {args.beats_checkpoint} is not there")
        if args.input_size != 1:
            raise ValueError(
                f"BEATs takes waveforms: --input_size 1, not {args.input_size}"
            )
        super().check_configuration(args)
        EncoderConfig.from_dict(args.encoder_conf, "encoder_conf")  # raises
        if others := sorted(set(args.encoder_conf) - {"drop_path"}):
            logging.warning("of no effect on BEATs: encoder_conf %s", ", ".join(others))
        # a rank waits for the gradients of a layer that was dropped, unless told
        args.unused_parameters = args.unused_parameters or bool(
            args.encoder_conf.get("drop_path")
        )

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> BeatsClassifier:
        """Return the classifier; the head is drawn from the global seed."""
        args.class_list = read_classes(args.class_list)
        return classifier_from_config(vars(args))


def main(cmd: Sequence[str] | None = None) -> None:
    """Train; `--help` lists the options, `--print_config` the whole configuration."""
    BeatsClassificationTask.main(cmd=cmd)


if __name__ == "__main__":
    run_main(main)
