"""Make our upstreams known to s3prl."""

from types import ModuleType

from espnet2_sslam.integrations.s3prl import compat

NAMES = ("sslam", "sslam_mean", "sslam_local", "sslam_url", "sslam_custom")


def register(hub: ModuleType) -> None:
    """Add our upstreams to `s3prl.hub`; again is harmless.

    Raises:
        ValueError: Something else has one of the names.
    """
    from espnet2_sslam.integrations.s3prl import upstreams

    compat.apply()
    for name in NAMES:
        own = getattr(upstreams, name)
        known = getattr(hub, name, own)
        if known is not own:
            raise ValueError(
                f"{hub.__name__} has another upstream named {name} "
                f"(of {getattr(known, '__module__', known)}): remove one of the two"
            )
    for name in NAMES:
        setattr(hub, name, getattr(upstreams, name))
