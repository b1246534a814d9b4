#!/usr/bin/env bash
# Make mixtures of a known number of sounds from another corpus.
# Called by local/data.sh; `--help` tells what --corpus_dir must hold.
set -euo pipefail
exec "${python:-python3}" "$(dirname "$0")/data_polyphony.py" "$@"
