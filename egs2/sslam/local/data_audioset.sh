#!/usr/bin/env bash
# Prepare AudioSet-2M, AudioSet-20K and their evaluation set.
# Called by local/data.sh; `--help` tells what --corpus_dir must hold.
set -euo pipefail
exec "${python:-python3}" "$(dirname "$0")/data_audioset.py" "$@"
