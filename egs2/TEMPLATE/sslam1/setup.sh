#!/usr/bin/env bash
# Make a recipe of an ESPnet clone: links to its TEMPLATE, and what SSLAM adds.
set -euo pipefail

if [ $# -ne 1 ]; then
    echo "usage: $0 <espnet>/egs2/<corpus>/ssl1" >&2
    exit 2
fi
dir=$1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
mkdir -p "${dir}"
espnet=${dir}/../../TEMPLATE
if [ ! -d "${espnet}/asr1" ]; then
    echo "$0: there is no ${espnet}/asr1: name a folder egs2/<corpus>/<task> of an ESPnet clone" >&2
    exit 1
fi

# Copies, to be adapted; what is there already is kept
for f in cmd.sh conf local; do
    [ -e "${dir}/${f}" ] || cp -r "${espnet}/asr1/${f}" "${dir}"
done
for f in README.md run.sh run_cls.sh sslam.sh conf/train_cls_sslam.yaml; do
    [ -e "${dir}/${f}" ] || cp "${here}/${f}" "${dir}/${f}"
done
for phase in eat sslam; do
    for size in base own small tiny; do
        config=${dir}/conf/train_${phase}_${size}.yaml
        [ -e "${config}" ] || cp "${here}/../../../conf/pretrain_${phase}_${size}.yaml" "${config}"
    done
done

# Symlinks to TEMPLATE
for f in path.sh db.sh scripts pyscripts steps utils; do
    ln -sfn "../../TEMPLATE/asr1/${f}" "${dir}/${f}"
done
ln -sfn ../../TEMPLATE/cls1/cls.sh "${dir}/cls.sh"

echo "made ${dir}: now write ${dir}/local/data.sh and adapt ${dir}/run.sh"
