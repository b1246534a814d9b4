#!/usr/bin/env bash
# Prepare any folder of audio files, or a table that lists them.
# Called by local/data.sh; `--help` tells what --corpus_dir must hold.
set -euo pipefail
exec "${python:-python3}" "$(dirname "$0")/data_folder.py" "$@"
