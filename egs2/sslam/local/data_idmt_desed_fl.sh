#!/usr/bin/env bash
# Prepare IDMT-DESED-FL: synthetic domestic soundscapes (layout assumed).
# Called by local/data.sh; `--help` tells what --corpus_dir must hold.
set -euo pipefail
exec "${python:-python3}" "$(dirname "$0")/data_idmt_desed_fl.py" "$@"
