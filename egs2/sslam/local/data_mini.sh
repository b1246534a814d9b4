#!/usr/bin/env bash
# Make the embedded corpus of synthetic sounds and scenes.
# Called by local/data.sh; `--help` tells what --corpus_dir must hold.
set -euo pipefail
exec "${python:-python3}" "$(dirname "$0")/data_mini.py" "$@"
