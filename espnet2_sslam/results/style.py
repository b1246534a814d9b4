"""The look that all plots share."""

import io
from collections.abc import Iterable
from pathlib import Path

import matplotlib

from espnet2_sslam.store import write_bytes

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the choice of the backend)

# Okabe and Ito's colours, distinct for the colour-blind and in grey.
COLOURS = {"random": "#999999", "phase1": "#56B4E9", "phase2": "#D55E00"}
MORE_COLOURS = ("#009E73", "#E69F00", "#CC79A7", "#0072B2", "#F0E442")
SEED_LINES = ("-", "--", ":", "-.")
plt.rcParams.update(
    {
        "figure.dpi": 110,
        "font.size": 10,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.alpha": 0.3,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
)


def colours(models: Iterable[str]) -> dict[str, str]:
    """Return a colour for each model, the same in every plot of these models."""
    others = [model for model in models if model not in COLOURS]
    more = {m: MORE_COLOURS[i % len(MORE_COLOURS)] for i, m in enumerate(others)}
    return {**COLOURS, **more}


def save(figure: "plt.Figure", path: Path) -> None:
    """Write a figure as PNG, whole or not at all, and close it."""
    stream = io.BytesIO()
    # Without the software's name the same numbers give the same bytes.
    figure.savefig(stream, format="png", metadata={"Software": None})
    plt.close(figure)
    write_bytes(Path(path), stream.getvalue())
