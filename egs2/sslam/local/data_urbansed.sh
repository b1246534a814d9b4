#!/usr/bin/env bash
# Prepare URBAN-SED: synthetic soundscapes of ten urban classes.
# Called by local/data.sh; `--help` tells what --corpus_dir must hold.
set -euo pipefail
exec "${python:-python3}" "$(dirname "$0")/data_urbansed.py" "$@"
