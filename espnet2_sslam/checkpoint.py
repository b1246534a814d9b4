"""The authors' parameter names and ours.

Source: key lists of checkpoints written by ta012/SSLAM@0a3c0ff (fairseq's trainer).
"""

from typing import Dict

import torch

ENCODER_NAMES = {
    "modality_encoders.IMAGE.extra_tokens": "cls_token",
    "modality_encoders.IMAGE.local_encoder.proj.": "patch_embed.proj.",
    "modality_encoders.IMAGE.fixed_positional_encoder.positions": "positions",
    "modality_encoders.IMAGE.context_encoder.norm.": "norm.",
    "blocks.": "blocks.",
}
DECODER_NAMES = {
    "modality_encoders.IMAGE.decoder.blocks.": "convs.",
    "modality_encoders.IMAGE.decoder.proj.": "proj.",
}


def encoder_state_from_authors(
    state: Dict[str, torch.Tensor],
) -> Dict[str, torch.Tensor]:
    """The encoder's entries of an authors' state dict under our names.

    Args:
        state: Entries in the authors' names; those of the decoder are left out.

    Returns:
        A state dict for `SSLAMEncoder` (without the fbank mean and std).

    Raises:
        ValueError: An entry that is neither the encoder's nor the decoder's.
    """
    return _rename(state, ENCODER_NAMES, DECODER_NAMES)


def decoder_state_from_authors(
    state: Dict[str, torch.Tensor],
) -> Dict[str, torch.Tensor]:
    """The decoder's entries of an authors' state dict under our names."""
    renamed = _rename(state, DECODER_NAMES, ENCODER_NAMES)
    return {name.replace(".0.", "."): value for name, value in renamed.items()}


def _rename(state, wanted, others):
    """Entries whose names begin as in `wanted`, renamed; unknown ones are an error."""
    result, unknown = {}, []
    for name, value in state.items():
        prefix = next((p for p in wanted if name.startswith(p)), None)
        if prefix is not None:
            result[wanted[prefix] + name[len(prefix) :]] = value
        elif not any(name.startswith(p) for p in others):
            unknown.append(name)
    if unknown:
        raise ValueError(f"not entries of an EAT or SSLAM model: {', '.join(unknown)}")
    return result
