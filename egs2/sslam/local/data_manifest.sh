#!/usr/bin/env bash
# Prepare data that the authors' tsv, lbl and label_descriptors files describe.
# Called by local/data.sh; `--help` tells what --corpus_dir must hold.
set -euo pipefail
exec "${python:-python3}" "$(dirname "$0")/data_manifest.py" "$@"
