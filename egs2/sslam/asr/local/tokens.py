#!/usr/bin/env python3
"""Learn BPE tokens with SentencePiece and write ESPnet's list of tokens."""

import argparse
from pathlib import Path

import sentencepiece

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import read_table
from espnet2_sslam.store import write_lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True, help="training text")
    parser.add_argument("--outdir", type=Path, required=True, help="output")
    parser.add_argument("--nbpe", type=int, default=30, help="number of tokens")
    args = parser.parse_args()
    args.outdir.mkdir(parents=True, exist_ok=True)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(read_table(args.text).values()),
            model_prefix=str(args.outdir / "bpe"),
            vocab_size=args.nbpe,
            model_type="bpe",
            minloglevel=2,
        )
    except RuntimeError as error:  # mostly: too few or too many tokens for the text
        raise ValueError(f"--nbpe {args.nbpe}: {error}") from error
    model = sentencepiece.SentencePieceProcessor(str(args.outdir / "bpe.model"))
    pieces = [model.id_to_piece(i) for i in range(model.vocab_size())]
    pieces = [piece for piece in pieces if piece not in ("<unk>", "<s>", "</s>")]
    # The first two and the last as ESPnet's asr.sh has them.
    tokens = ["<blank>", "<unk>", *pieces, "<sos/eos>"]
    write_lines(args.outdir / "tokens.txt", tokens)


if __name__ == "__main__":
    run_main(main)
