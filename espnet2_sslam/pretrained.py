"""Pre-trained weights inside ESPnet's tasks: read when a training begins, never later.

A configuration that names its source (`pretrained: SOURCE`) also gets the source's
sizes before ESPnet saves it, so that a trained model is rebuilt from config.yaml and
its own weights alone.
"""

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Dict, Optional

from espnet2_sslam.checkpoint import CheckpointError, load_model, model_config
from espnet2_sslam.encoder import SSLAMEncoder

SIZES = ("embed_dim", "depth", "num_heads", "mlp_ratio", "max_frames")
_weights_follow = ContextVar("weights_follow", default=False)


@contextmanager
def weights_follow() -> Iterator[None]:
    """Inside, models are built without their pre-trained weights.

    For a model whose trained weights are loaded next: the source may be gone by then.
    """
    token = _weights_follow.set(True)
    try:
        yield
    finally:
        _weights_follow.reset(token)


def with_sizes(conf: Dict[str, Any]) -> Dict[str, Any]:
    """The options of an encoder or frontend with the sizes of their `pretrained`.

    Args:
        conf: Options; returned as they are without `pretrained` or if weights follow.

    Raises:
        CheckpointError: The source cannot be read, or has other sizes than those given.
    """
    source = conf.get("pretrained")
    if source is None or _weights_follow.get():
        return conf
    return {**conf, **_sizes(source, _read(source), conf)}


class Pretrained:
    """What a module with weights from `pretrained` does about them.

    Args:
        source: Anything that `checkpoint.load_model` takes, or None.
        options: Options of `SSLAMEncoder`, sizes that are None left to the source.
    """

    def __init__(self, source: Optional[str], options: Dict[str, Any]):
        self.source = None if _weights_follow.get() else source
        given = {k: v for k, v in options.items() if v is not None or k not in SIZES}
        self.state = None
        if self.source is not None:
            encoder = _read(self.source)
            given.update(_sizes(self.source, encoder, given))
            self.state = encoder.state_dict()
        self.options = given

    def fill(self, encoder: SSLAMEncoder) -> None:
        """Load the source's weights, if there is one.

        Raises:
            ValueError: The fbank statistics given differ, see `features.LogMel`.
        """
        if self.source is None:
            return
        state = _read(self.source).state_dict() if self.state is None else self.state
        encoder.load_state_dict(state)
        self.state = None  # a copy of all weights would stay in memory
        logging.info("pre-trained weights of %s loaded", self.source)


class PretrainedEncoder(SSLAMEncoder):
    """SSLAMEncoder as `encoder: sslam` in ESPnet's tasks.

    Args:
        input_size: As for `SSLAMEncoder`.
        pretrained: Where the weights come from, anything that `checkpoint.load_model`
            takes; None: random ones. The sizes are the source's.
        options: As for `SSLAMEncoder`.

    Raises:
        CheckpointError: The source cannot be read, or has other sizes than those given.
        ValueError: As `SSLAMEncoder`.
    """

    def __init__(
        self, input_size: int = 1, *, pretrained: Optional[str] = None, **options: Any
    ):
        source = Pretrained(pretrained, options)
        super().__init__(input_size, **source.options)
        self.pretrained = source
        source.fill(self)

    def reload_pretrained_parameters(self) -> None:
        """Load the weights again, after ESPnet's `--init` has overwritten them."""
        self.pretrained.fill(self)


def _signature() -> inspect.Signature:
    """What `--print_config` shows: all options of the encoder, and `pretrained`."""
    first, *rest = inspect.signature(SSLAMEncoder).parameters.values()
    own = inspect.signature(PretrainedEncoder.__init__).parameters["pretrained"]
    # ESPnet gives input_size itself: a default would get into encoder_conf, and clash
    return inspect.Signature([first.replace(default=first.empty), own, *rest])


PretrainedEncoder.__signature__ = _signature()


def _read(source: str) -> SSLAMEncoder:
    """The encoder of a source; errors name the option that asked for it."""
    try:
        return load_model(source).encoder
    except (ValueError, OSError) as error:
        raise CheckpointError(f"pretrained: {error}") from error


def _sizes(source: str, encoder: SSLAMEncoder, given: Dict[str, Any]) -> Dict[str, Any]:
    """The encoder's sizes, with which those given must agree."""
    found = {name: model_config(encoder)["encoder"][name] for name in SIZES}
    for name, value in found.items():
        if given.get(name) is not None and given[name] != value:
            raise CheckpointError(
                f"{name} is {given[name]} in the configuration, but {value} in "
                f"pretrained {source}: leave {name} out"
            )
    return found
