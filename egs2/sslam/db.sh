# shellcheck shell=bash disable=SC2034
# Where the corpora are, for --corpus without --corpus_dir. Edit the lines, or set the
# variables outside. `mini` needs none: stage 1 makes it.
ESC50="${ESC50:-}"             # holds meta/esc50.csv and audio/
AUDIO_FOLDER="${AUDIO_FOLDER:-}" # any tree of audio files, or a CSV/TSV that lists them
