"""Miniature trees of the corpora: exactly their layout, names and oddities.

Each module has `make(folder, clips=None) -> None`. The sounds are short made ones, or
those of `clips`, a list of real audio files that are used in turn.
"""
