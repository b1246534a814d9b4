#!/usr/bin/env bash
# Prepare ESC-50: five folds, cross-validated.
# Called by local/data.sh; `--help` tells what --corpus_dir must hold.
set -euo pipefail
exec "${python:-python3}" "$(dirname "$0")/data_esc50.py" "$@"
