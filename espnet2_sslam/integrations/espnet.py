"""What `import espnet2_sslam` changes in ESPnet's own tasks; called by `_hook`.

`sslam` becomes one of the choices of audio encoders and frontends. A task with such a
choice builds its models through `build` below, which touches only those with our
encoder in them: the sizes of `pretrained` are written into the configuration, and CTC
is watched. `AbsTask.build_model_from_file` needs no source of pre-trained weights.
"""

import argparse
import functools
import logging
from types import ModuleType
from typing import Any, Callable, Dict

from espnet2.asr.encoder.abs_encoder import AbsEncoder
from espnet2.asr.frontend.abs_frontend import AbsFrontend
from espnet2.tasks.abs_task import AbsTask
from espnet2.train.class_choices import ClassChoices

from espnet2_sslam.encoder import SSLAMEncoder
from espnet2_sslam.frontend import SSLAMFrontend
from espnet2_sslam.integrations.ctc import watch_ctc
from espnet2_sslam.pretrained import PretrainedEncoder, weights_follow, with_sizes
from espnet2_sslam.tasks.checks import check_keywords

NAME = "sslam"
OURS = {AbsEncoder: PretrainedEncoder, AbsFrontend: SSLAMFrontend}


def register(module: ModuleType) -> None:
    """Make `sslam` known to a module of espnet2.tasks; again is harmless.

    Raises:
        ImportError: Another class has the name already.
    """
    for variable, value in list(vars(module).items()):
        if isinstance(value, ClassChoices) and value.base_type in OURS:
            _add(value, f"{module.__name__}.{variable}")
        elif isinstance(value, type) and issubclass(value, AbsTask):
            _wrap(value, "build_model", _build_model)
            _wrap(value, "build_model_from_file", _build_model_from_file)


def _add(choices: ClassChoices, where: str) -> None:
    """Add our class to the choices."""
    ours = OURS[choices.base_type]
    known = choices.classes.setdefault(NAME, ours)
    if known is not ours:
        raise ImportError(
            f"{where} has another class named {NAME} "
            f"({known.__module__}.{known.__qualname__}): remove one of the two"
        )


def _wrap(task: type, name: str, wrapper: Callable) -> None:
    """Replace a class method that the task itself defines, once."""
    original = vars(task).get(name)
    if not isinstance(original, classmethod) or original.__isabstractmethod__:
        return
    if hasattr(original.__func__, "by_sslam"):
        return

    @functools.wraps(original.__func__)
    def wrapped(cls, *args, **kwargs):
        return wrapper(functools.partial(original.__func__, cls), cls, *args, **kwargs)

    wrapped.by_sslam = True
    setattr(task, name, classmethod(wrapped))


def _build_model(build: Callable, cls: type, args: argparse.Namespace) -> Any:
    """Build a model; ours gets its sizes into `args`, and CTC is watched."""
    for choices in cls.class_choices_list:
        if getattr(args, choices.name, None) == NAME and choices.base_type in OURS:
            option = f"{choices.name}_conf"
            conf = getattr(args, option, None) or {}
            check_keywords(OURS[choices.base_type], conf, option, ["input_size"])
            setattr(args, option, with_sizes(conf))
            if choices.base_type is AbsFrontend:
                _warn_of_random_features(conf, args)
    model = build(args)
    if any(isinstance(module, SSLAMEncoder) for module in model.modules()):
        watch_ctc(model)
    return model


def _build_model_from_file(
    build: Callable, cls: type, config_file=None, model_file=None, *args, **kwargs
) -> Any:
    """Build a trained model: nothing but its own files is needed."""
    if model_file is None:
        return build(config_file, model_file, *args, **kwargs)
    with weights_follow():
        return build(config_file, model_file, *args, **kwargs)


def _warn_of_random_features(conf: Dict[str, Any], args: argparse.Namespace) -> None:
    """Say so when the frontend's weights are neither loaded nor trained."""
    if conf.get("freeze", True) and not conf.get("pretrained"):
        if not getattr(args, "init_param", None):
            logging.warning(
                "frontend sslam is random and frozen: give frontend_conf.pretrained, "
                "or freeze: false to train it"
            )
