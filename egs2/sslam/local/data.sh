#!/usr/bin/env bash
# Stage 1: write data/<set>/<split>/{wav.scp,utt2spk,spk2utt,text}, classes.txt and
# downstream.txt of one corpus. Options that are not listed here go to the corpus's
# own script; `local/data.sh --corpus esc50 --help` shows them.
set -euo pipefail

usage="Usage: local/data.sh --corpus NAME [--corpus_dir DIR] [--datadir data]
       [--nj 1] [--python python3] [options of local/data_<corpus>.py]"

local_dir="$(dirname "${BASH_SOURCE[0]}")"
corpora=("${local_dir}"/data_*.py)
corpora=("${corpora[@]##*/data_}")
corpora=("${corpora[@]%.py}")

corpus=mini
corpus_dir=
datadir=data
nj=1
python=python3
help=false
options=()
while [ $# -gt 0 ]; do
    case "$1" in
        --corpus | --corpus_dir | --datadir | --nj | --python)
            if [ $# -lt 2 ]; then
                echo "error: $1 needs a value" >&2
                exit 1
            fi
            printf -v "${1#--}" '%s' "$2"
            shift 2
            ;;
        -h | --help)
            help=true
            shift
            ;;
        *)
            options+=("$1")
            shift
            ;;
    esac
done

if [[ ! " ${corpora[*]} " == *" ${corpus} "* ]]; then
    echo "error: unknown --corpus '${corpus}': use one of ${corpora[*]}" >&2
    exit 1
fi
script="${local_dir}/data_${corpus}.py"
if "${help}"; then
    echo "${usage}"
    exec "${python}" "${script}" --help
fi
if [ "${corpus}" != mini ]; then
    if [ -z "${corpus_dir}" ]; then
        echo "error: --corpus ${corpus} needs --corpus_dir" >&2
        exit 1
    fi
    options+=(--corpus_dir "${corpus_dir}")
fi
exec "${python}" "${script}" --datadir "${datadir}" --nj "${nj}" \
    ${options[@]+"${options[@]}"}
