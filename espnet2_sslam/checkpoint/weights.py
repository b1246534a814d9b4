"""Loading weights with nothing missing, nothing left over, nothing misspelt."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from espnet2_sslam.checkpoint.errors import RefusedPickle
from espnet2_sslam.checkpoint.pickled import read_pickle


def check_init_param(model: torch.nn.Module, init_param: str) -> None:
    """Refuse an --init_param that would load nothing, half or the wrong shapes.

    Args:
        model: the model to be initialised.
        init_param: <file>[:<source key>[:<own key>[:<excluded prefixes>]]].

    Raises:
        ValueError: naming the file and the first key at fault.
    """
    path, source, target, excluded = (init_param.split(":") + ["", "", ""])[:4]
    if not Path(path).is_file():
        raise ValueError(f"--init_param: {path} does not exist: train it first")
    excluded = tuple(prefix for prefix in excluded.split(",") if prefix)
    states = load_states(path)
    loaded = {
        k: v for k, v in states.items() if not (excluded and k.startswith(excluded))
    }
    if source:
        cut = len(source) + 1
        loaded = {k[cut:]: v for k, v in loaded.items() if k.startswith(source + ".")}
    if not loaded:
        raise ValueError(
            f"--init_param {init_param}: {path} has nothing named {source or '?'}: it "
            f"holds {', '.join(sorted({k.split('.')[0] for k in states}))}"
        )
    try:
        own = (model.get_submodule(target) if target else model).state_dict()
    except AttributeError as error:
        raise ValueError(
            f"--init_param {init_param}: the model has no {target}"
        ) from error
    prefix = source + "." if source else ""
    left_out = {k for k in own if excluded and (prefix + k).startswith(excluded)}
    compare_states(own, loaded, f"--init_param {init_param}", left_out)


def load_states(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a model file; ValueError if it is not one."""
    try:
        states = read_pickle(path)
    except RefusedPickle:  # checkpoint.pth holds times and more besides the weights
        states = None
    flat = isinstance(states, Mapping)
    if not flat or not all(isinstance(v, torch.Tensor) for v in states.values()):
        raise ValueError(
            f"{path} holds more than weights: give <N>epoch.pth or latest.pth; for the "
            f"authors' checkpoints, the output of `sslam-convert {path} OUT.pth`"
        )
    return dict(states)


def compare_states(
    own: dict[str, torch.Tensor],
    loaded: dict[str, torch.Tensor],
    source: str,
    left_out: Iterable[str] = (),
) -> None:
    """Raise ValueError unless names and shapes of two state dicts agree."""
    missing = sorted(set(own) - set(loaded) - set(left_out))
    extra = sorted(set(loaded) - set(own))
    if missing or extra:
        raise ValueError(
            f"{source} does not fit the model: missing {_short(missing)}; unknown "
            f"{_short(extra)}: use the configuration it was trained with"
        )
    for key, value in loaded.items():
        if value.shape != own[key].shape:
            raise ValueError(
                f"{source} does not fit the model: {key} has shape "
                f"{tuple(value.shape)}, needed is {tuple(own[key].shape)}"
            )


def _short(names: list[str]) -> str:
    """Return the first few names and how many there are."""
    if not names:
        return "nothing"
    return ", ".join(names[:3]) + (f", ... ({len(names)})" if len(names) > 3 else "")
