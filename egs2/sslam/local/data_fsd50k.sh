#!/usr/bin/env bash
# Prepare FSD50K: 200 classes of AudioSet's ontology.
# Called by local/data.sh; `--help` tells what --corpus_dir must hold.
set -euo pipefail
exec "${python:-python3}" "$(dirname "$0")/data_fsd50k.py" "$@"
