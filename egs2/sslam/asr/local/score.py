#!/usr/bin/env python3
"""Word and character error rates of all models, in one table."""

import argparse
from pathlib import Path

import yaml
from torchaudio.functional import edit_distance

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import write_atomically

SETS = {"test_known": "known speakers", "test_new": "new speaker"}


def read_text(path: Path) -> dict[str, str]:
    """Return {key: text} of a Kaldi text file; a text may be empty.

    Raises:
        ValueError: No such file.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: run the earlier stages first")
    rows = path.read_text(encoding="utf-8").splitlines()
    return {key: text for key, _, text in (row.partition(" ") for row in rows)}


def error_rates(reference: dict[str, str], found: dict[str, str]) -> tuple:
    """Return word and character error rate in percent.

    Raises:
        ValueError: The two do not hold the same utterances.
    """
    if set(reference) != set(found):
        raise ValueError(
            f"{len(found)} utterances were decoded, {len(reference)} were expected: "
            "run the decoding again"
        )
    rates = []
    for units in (str.split, list):
        errors = sum(edit_distance(units(reference[k]), units(found[k])) for k in found)
        rates.append(
            100 * errors / sum(len(units(text)) for text in reference.values())
        )
    return tuple(rates)


def describe(config: dict) -> tuple[str, str]:
    """Return what a model is, and where SSLAM's weights in it come from."""
    for place in ("encoder", "frontend"):
        if config[place] == "sslam":
            conf = config[f"{place}_conf"]
            weights = "pre-trained" if conf.get("pretrained") else "random"
            # the encoder is trained unless it says otherwise, the frontend is not
            frozen = conf.get("freeze", place == "frontend")
            weights += ", frozen" if frozen else ", trained"
            above = "" if place == "encoder" else f" under {config['encoder']}"
            return f"{place} sslam{above}", weights
    return f"encoder {config['encoder']}", ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--datadir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="RESULTS.md")
    parser.add_argument("models", type=Path, nargs="+", help="folders of experiments")
    args = parser.parse_args()
    heads = [f"{name}, {rate}" for name in SETS.values() for rate in ("WER", "CER")]
    lines = [
        "# Error rates of spoken digit strings, in %",
        "",
        f"| model | SSLAM's weights | {' | '.join(heads)} |",
        f"|---|---|{'---:|' * len(heads)}",
    ]
    for model in args.models:
        with open(model / "model" / "config.yaml", encoding="utf-8") as stream:
            name, weights = describe(yaml.safe_load(stream))
        rates = []
        for test in SETS:
            found = read_text(model / test / "1best_recog" / "text")
            rates += error_rates(read_text(args.datadir / test / "text"), found)
        cells = " | ".join(f"{rate:.1f}" for rate in rates)
        lines.append(f"| {name} | {weights} | {cells} |")
    text = "\n".join(lines) + "\n"
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(args.output, text)
    print(text)


if __name__ == "__main__":
    run_main(main)
