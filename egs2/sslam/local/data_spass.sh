#!/usr/bin/env bash
# Prepare SPASS: five urban scenes, each with its own classes.
# Called by local/data.sh; `--help` tells what --corpus_dir must hold.
set -euo pipefail
exec "${python:-python3}" "$(dirname "$0")/data_spass.py" "$@"
