#!/usr/bin/env bash
# Fetch what may be fetched of a corpus, checked and unpacked; explain the rest.
# `local/download.sh --help` shows the options.
set -euo pipefail
exec "${python:-python3}" "$(dirname "$0")/download.py" "$@"
