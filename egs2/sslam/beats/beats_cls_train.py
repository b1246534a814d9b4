#!/usr/bin/env python3
"""Train a head on BEATs (or all of it) on labelled clips, to compare with SSLAM.

BEATs is ESPnet's own encoder, with a checkpoint as its authors publish it (`cfg` and
`model`).
"""

import argparse
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from espnet2_sslam.augment import Augmentation
from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.checkpoint import read_pickle
from espnet2_sslam.classifier import SSLAMClassifier
from espnet2_sslam.config import EncoderConfig, HeadConfig
from espnet2_sslam.encoder import EncoderOutput
from espnet2_sslam.masking import batch_generator
from espnet2_sslam.tasks import SSLAMClassificationTask, read_classes
from espnet2_sslam.units import PATCH_SIZE, PATCHES_PER_STEP

SHORTEST = 3200  # samples; ESPnet's encoder repeats shorter clips


def beats_module() -> Any:
    """ESPnet's module with the encoder, by its name in 202611 or 202511."""
    try:
        return importlib.import_module("espnet2.beats.encoder")
    except ModuleNotFoundError:
        return importlib.import_module("espnet2.asr.encoder.beats_encoder")


def espnet_encoder(checkpoint: str) -> nn.Module:
    """Build ESPnet's BEATs encoder with the weights of a checkpoint."""
    content = read_pickle(checkpoint)
    if not isinstance(content, Mapping) or not {"cfg", "model"} <= set(content):
        raise ValueError(
            f"{checkpoint} is not a BEATs checkpoint: it must hold `cfg` and `model`"
        )
    encoder = beats_module().BeatsEncoder(1, beats_config=dict(content["cfg"]))
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

    Args:
        encoder: ESPnet's BEATs encoder.
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.beats = encoder
        width = encoder.output_size()  # type: ignore[operator]
        self.config = EncoderConfig(embed_dim=width, depth=1, num_heads=1)

    def hidden_states(
        self, speech: torch.Tensor, lengths: torch.Tensor, layer: int | str = -1
    ) -> EncoderOutput:
        """Tokens (B, 1+N, D) of the last layer, as `SSLAMEncoder.hidden_states`.

        BEATs has no CLS token; zeros stand in its place. Clips of one length go through
        together, so that padding never counts.
        """
        parts, steps = [], torch.zeros_like(lengths)
        for length in lengths.unique().tolist():
            same = lengths == length
            clips = speech[same, :length].repeat(1, max(1, -(-SHORTEST // length)))
            tokens, _, _ = self.beats(
                clips, torch.full_like(lengths[same], clips.shape[1])
            )
            steps[same] = tokens.shape[1] // PATCHES_PER_STEP
            parts.append((same, tokens))
        patches = steps * PATCHES_PER_STEP
        longest = int(patches.max())
        last = tokens.new_zeros(len(speech), 1 + longest, tokens.shape[2])
        for same, tokens in parts:
            number = int(patches[same][0])
            last[same, 1 : 1 + number] = tokens[:, :number]
        real = torch.arange(longest, device=speech.device) < patches[:, None]
        return EncoderOutput(last, [], [], real, steps * PATCH_SIZE)


class BeatsClassifier(SSLAMClassifier):
    """SSLAMClassifier on BEATs: no CLS token, no layers, no spectrogram to augment."""

    def __init__(
        self, encoder: Any, head: HeadConfig | Sequence[str], **options: Any
    ) -> None:
        augmentation = options.get("augmentation") or Augmentation()
        refused = {
            "pooling: cls": options.get("pooling", "cls") == "cls",
            "weighted_layers": options.get("weighted_layers", False),
            "frozen_drop_path": options.get("frozen_drop_path", False),
            "mixup": augmentation.mixup_alpha,
            "mask_ratio": augmentation.mask_ratio,
        }
        if wrong := [name for name, asked in refused.items() if asked]:
            raise ValueError(
                f"BEATs has no {', '.join(wrong)} here: use conf/probe_mean.yaml, "
                "conf/probe_attentive.yaml or conf/linear_tiny.yaml"
            )
        super().__init__(encoder, head, **options)

    def checkpoint_activations(self, parts):
        raise ValueError("BEATs has no --activation_checkpointing here")

    def compile_step(self, **options):
        raise ValueError("ESPnet's BEATs cannot be compiled: leave --compile at false")

    def _augmented(self, speech, lengths, targets):
        """Clips with augmented waveforms, and the targets."""
        generator = batch_generator(speech.device, self.seed, self.num_batches)
        speech = self.augmentation.waveform(speech, lengths, generator)
        return speech, lengths, targets

    def objective(self, speech, lengths, targets):
        """Loss and weight of such a batch."""
        return self._loss(self.logits(self._pooled(speech, lengths)), targets)


def classifier_from_config(config: Mapping[str, Any]) -> BeatsClassifier:
    """Build the classifier that a training configuration describes."""
    return BeatsClassifier(
        BeatsTokens(espnet_encoder(config["beats_checkpoint"])),
        config["class_list"],
        augmentation=Augmentation(**config["augment_conf"]),
        seed=config["seed"],
        **config["model_conf"],
    )


class BeatsClassificationTask(SSLAMClassificationTask):
    """Train a head on BEATs, or all of it."""

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
        if args.encoder_conf or args.input_size != 1:
            raise ValueError(
                "BEATs takes waveforms (--input_size 1) and no encoder_conf: use a "
                "config without it, such as conf/probe_mean.yaml"
            )
        super().check_configuration(args)

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
