#!/usr/bin/env bash
# Prepare Speech Commands: ks1 (v0.01, 12 classes) or ks2 (v0.02, 35 words).
# Called by local/data.sh; `--help` tells what --corpus_dir must hold.
set -euo pipefail
exec "${python:-python3}" "$(dirname "$0")/data_speechcommands.py" "$@"
