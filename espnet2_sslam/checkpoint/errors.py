"""The one error of this package."""


class CheckpointError(ValueError):
    """A model or checkpoint that cannot be used; one line that says what it is."""
