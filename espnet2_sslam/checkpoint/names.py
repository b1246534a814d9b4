"""The authors' parameter names and ours, in both directions.

Two layouts are known: "fairseq", what the authors' trainer writes (.pt), and
"huggingface", their exports (safetensors). Ours are the names of `SSLAMEncoder`,
`ConvDecoder` and `SSLAMClassifier`.

Source: key lists of checkpoints written by ta012/SSLAM@0a3c0ff (fairseq's trainer);
the exports' names as their public loaders read them.
"""

import torch

State = dict[str, torch.Tensor]

# authors' prefix -> ours; a trailing dot stands for everything below
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
HEAD_NAMES = {"fc_norm.": "fc_norm.", "head.": "head."}
HUGGINGFACE_NAMES = {
    "model.extra_tokens": "cls_token",
    "model.local_encoder.proj.": "patch_embed.proj.",
    "model.fixed_positional_encoder.positions": "positions",
    "model.pre_norm.": "norm.",
    "model.blocks.": "blocks.",
}
HUGGINGFACE_HEAD_NAMES = {"model.fc_norm.": "fc_norm.", "model.head.": "head."}


def rename(state: State, names: dict[str, str]) -> tuple[State, list[str]]:
    """Rename the entries whose names begin as in `names`.

    Returns:
        The renamed entries, and the names of the others.
    """
    renamed, others = {}, []
    for name, value in state.items():
        prefix = next((p for p in names if name == p or _is_below(name, p)), None)
        if prefix is None:
            others.append(name)
        else:
            renamed[names[prefix] + name[len(prefix) :]] = value
    return renamed, others


def reverse(names: dict[str, str]) -> dict[str, str]:
    """The same table from our names to the authors'."""
    return {ours: theirs for theirs, ours in names.items()}


def encoder_state_from_authors(state: State) -> State:
    """The encoder's entries of a fairseq state dict under our names.

    Args:
        state: Entries in the authors' names; those of the decoder are left out.

    Returns:
        A state dict for `SSLAMEncoder` (without the fbank mean and std).

    Raises:
        ValueError: An entry that is neither the encoder's nor the decoder's.
    """
    return _part(state, ENCODER_NAMES, DECODER_NAMES)


def decoder_state_from_authors(state: State) -> State:
    """The decoder's entries of a fairseq state dict under our names."""
    renamed = _part(state, DECODER_NAMES, ENCODER_NAMES)
    # a block of theirs is a sequence, whose first entry is the convolution
    return {name.replace(".0.", "."): value for name, value in renamed.items()}


def decoder_state_to_authors(state: State) -> State:
    """Our decoder's entries under the authors' names."""
    renamed = {}
    for name, value in state.items():
        if name.startswith("convs."):
            _, index, rest = name.split(".")
            name = f"convs.{index}.0.{rest}"
        renamed[name] = value
    return rename(renamed, reverse(DECODER_NAMES))[0]


def _is_below(name: str, prefix: str) -> bool:
    return prefix.endswith(".") and name.startswith(prefix)


def _part(state: State, wanted: dict[str, str], others: dict[str, str]) -> State:
    """Entries of one part, renamed; those of neither part are an error."""
    renamed, rest = rename(state, wanted)
    unknown = [name for name in rest if not rename({name: state[name]}, others)[0]]
    if unknown:
        raise ValueError(f"not entries of an EAT or SSLAM model: {', '.join(unknown)}")
    return renamed
