"""The errors of this package."""


class CheckpointError(ValueError):
    """A model or checkpoint that cannot be used; one line that says what it is."""


class RefusedPickle(CheckpointError):
    """A pickle that asks for more than plain values, so that it is not read."""
