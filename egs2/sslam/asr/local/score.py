#!/usr/bin/env python3
"""Word and character error rates of all models, in one table."""

import argparse
from pathlib import Path

import yaml
from torchaudio.functional import edit_distance

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import read_table
from espnet2_sslam.results import markdown
from espnet2_sslam.store import write_text

SETS = {"test_known": "known speakers", "test_new": "new speaker"}


def error_rates(reference: dict[str, str], decoded: dict[str, str]) -> list[float]:
    """Word and character error rate in percent."""
    if set(reference) != set(decoded):
        raise ValueError(
            f"{len(decoded)} utterances were decoded, {len(reference)} were expected: "
            "run the decoding again"
        )
    rates = []
    for units in (str.split, list):
        pairs = [(units(reference[key]), units(decoded[key])) for key in reference]
        errors = sum(edit_distance(*pair) for pair in pairs)
        rates.append(100 * errors / sum(len(right) for right, _ in pairs))
    return rates


def describe(config: dict) -> tuple[str, str]:
    """What a model is, and where SSLAM's weights in it come from."""
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
    rows = []
    for model in args.models:
        config = (model / "model" / "config.yaml").read_text(encoding="utf-8")
        row = [*describe(yaml.safe_load(config))]
        for test in SETS:
            decoded = read_table(model / test / "1best_recog" / "text")
            rates = error_rates(read_table(args.datadir / test / "text"), decoded)
            row += [f"{rate:.1f}" for rate in rates]
        rows.append(row)
    heads = [f"{name}, {rate}" for name in SETS.values() for rate in ("WER", "CER")]
    table = markdown(["model", "SSLAM's weights", *heads], rows)
    text = f"# Error rates of spoken digit strings, in %\n\n{table}\n"
    write_text(args.output, text)
    print(text)


if __name__ == "__main__":
    run_main(main)
