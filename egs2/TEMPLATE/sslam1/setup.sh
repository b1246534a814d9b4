#!/usr/bin/env bash
# Make a recipe of an ESPnet clone: links to its TEMPLATE, and what SSLAM adds.
set -euo pipefail

if [ $# -ne 1 ]; then
    echo "usage: $0 <espnet>/egs2/<corpus>/ssl1" >&2
    exit 2
fi
dir=$(realpath -m "$1")
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
espnet=${dir%/*/*}/TEMPLATE
if [ ! -d "${espnet}/asr1" ]; then
    echo "$0: there is no ${espnet}/asr1: name a folder egs2/<corpus>/<task> of an ESPnet clone" >&2
    exit 1
fi

# keep <file>: whether it is there already, and says so
keep() {
    if [ ! -e "${dir}/$1" ] || [ -L "${dir}/$1" ]; then return 1; fi
    echo "kept as it is: ${dir}/$1"
}

# Copies, to be adapted
mkdir -p "${dir}"
for f in cmd.sh conf local; do
    keep "${f}" || cp -r "${espnet}/asr1/${f}" "${dir}"
done
for f in README.md run.sh run_cls.sh sslam.sh conf/train_cls_sslam.yaml; do
    keep "${f}" || cp "${here}/${f}" "${dir}/${f}"
done
for phase in eat sslam; do
    for size in base own small tiny; do
        config=conf/train_${phase}_${size}.yaml
        keep "${config}" ||
            cp "${here}/../../../conf/pretrain_${phase}_${size}.yaml" "${dir}/${config}"
    done
done

# Links to TEMPLATE
for f in path.sh db.sh scripts pyscripts steps utils; do
    keep "${f}" || ln -sfn "../../TEMPLATE/asr1/${f}" "${dir}/${f}"
done
keep cls.sh || ln -sfn ../../TEMPLATE/cls1/cls.sh "${dir}/cls.sh"

echo "made ${dir}: now write ${dir}/local/data.sh and adapt ${dir}/run.sh"
