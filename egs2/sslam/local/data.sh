#!/usr/bin/env bash
# Stage 1: write data/<set>/<split>/{wav.scp,utt2spk,spk2utt,text}, classes.txt and
# downstream.txt of one corpus.
#   local/data.sh --corpus NAME [--python python3] [options of local/data_<corpus>.py]
# `local/data.sh --corpus esc50 --help` shows the options of ESC-50.
set -euo pipefail

local_dir="$(dirname "${BASH_SOURCE[0]}")"
corpus=mini corpus_dir='' python=python3 options=()
while [ $# -gt 0 ]; do
    case "$1" in
        --corpus | --corpus_dir | --python)
            if [ $# -lt 2 ]; then
                echo "error: $1 needs a value" >&2
                exit 1
            fi
            printf -v "${1#--}" '%s' "$2"
            shift
            ;;
        *) options+=("$1") ;;
    esac
    shift
done
script="${local_dir}/data_${corpus}.py"
if [ ! -f "${script}" ]; then
    names="$(basename -s .py "${local_dir}"/data_*.py | sed 's/^data_//' | paste -sd ' ')"
    echo "error: unknown --corpus '${corpus}': use one of ${names}" >&2
    exit 1
fi
exec "${python}" "${script}" ${corpus_dir:+--corpus_dir "${corpus_dir}"} \
    ${options[@]+"${options[@]}"}
