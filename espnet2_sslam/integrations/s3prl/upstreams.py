"""The upstreams as s3prl and torch.hub call them, and how s3prl gets to know them.

All of them take what s3prl's callers give: `ckpt` (-k, path_or_url), `model_config`
(-g: a YAML file of options), `refresh` (-r) and options by name (extra_conf). The
options are those of `expert.read_options`.
"""

from types import ModuleType

from espnet2_sslam.integrations.s3prl.expert import UpstreamExpert

NAMES = ("sslam", "sslam_mean", "sslam_local", "sslam_url", "sslam_custom")


def register(hub: ModuleType) -> None:
    """Add our upstreams to `s3prl.hub`; again is harmless.

    Raises:
        ValueError: Something else has one of the names.
    """
    ours = {name: globals()[name] for name in NAMES}
    for name, upstream in ours.items():
        known = getattr(hub, name, upstream)
        if known is not upstream:
            raise ValueError(
                f"{hub.__name__} has another upstream named {name} "
                f"(of {getattr(known, '__module__', known)}): remove one of the two"
            )
    vars(hub).update(ours)


def sslam(ckpt=None, model_config=None, refresh=False, **options):
    """SSLAM, the frequency patches of a step side by side: 8 * D per 160 ms.

    Args:
        ckpt: Folder, file, Hugging Face id or URL of a model. Without it an encoder
            with random weights of the sizes in the options.
        model_config: YAML file (or dict) with options.
        refresh: Download a URL again.
        options: See `expert.read_options`; they win over `model_config`.
    """
    return UpstreamExpert(ckpt, model_config, refresh, **options)


def sslam_mean(ckpt=None, model_config=None, refresh=False, **options):
    """SSLAM, the mean over the frequency patches of a step: D per 160 ms."""
    return sslam(ckpt, model_config, refresh, **{"freq": "mean", **options})


# The names by which s3prl knows an upstream that takes any checkpoint.
sslam_local = sslam_url = sslam_custom = sslam
