#!/usr/bin/env bash
# shellcheck disable=SC1091,SC2154
# Pre-training by SSLAM, from ESPnet's data folders. As TEMPLATE/ssl1/ssl.sh, but for
# espnet2_sslam's task: phase 1 (EAT's objective), then phase 2 (mixtures of sounds).
set -e
set -u
set -o pipefail

log() {
    local fname=${BASH_SOURCE[1]##*/}
    echo -e "$(date '+%Y-%m-%dT%H:%M:%S') (${fname}:${BASH_LINENO[0]}:${FUNCNAME[1]}) $*"
}
SECONDS=0

# General configuration
stage=1              # Processes starts from the specified stage.
stop_stage=5         # Processes is stopped at the specified stage.
ngpu=1               # The number of gpus ("0" uses cpu, otherwise use gpu).
num_nodes=1          # The number of nodes.
nj=32                # The number of parallel jobs.
dumpdir=dump         # Directory to dump audio.
expdir=exp           # Directory to save experiments.
python=python3       # Specify python to execute espnet commands.
local_data_opts=     # The options given to local/data.sh.
audio_format=wav     # wav (fast to read) or flac
train_set=           # Name of training set (required).
valid_set=           # Name of validation set (required).
train_configs=       # One config per phase; each begins with the weights of the one before.
pretrained_model=    # What the first begins with, as --init_param of ESPnet's training.
ssl_tag=             # Suffix to the result dirs.
ssl_args=            # Arguments for all trainings, e.g., "--max_epoch 10".
publish_args=        # Arguments for sslam publish, e.g., "--license cc-by-4.0".
hf_repo=             # Upload there.

help_message="Usage: $0 --train_set <train_set_name> --valid_set <valid_set_name> \\
    --train_configs \"conf/train_eat_own.yaml conf/train_sslam_own.yaml\"
Options (default):
$(sed -n '/^# General/,/^hf_repo/s/^\([a-z_]*\)=\([^ ]*\) *# /    --\1 (\2)  /p' "$0")"

. utils/parse_options.sh
. ./path.sh
. ./cmd.sh

for option in train_set valid_set train_configs; do
    [ -n "${!option}" ] || { log "${help_message}"; log "Error: --${option} is required"; exit 2; }
done
data_feats=${dumpdir}/raw

if [ "${stage}" -le 1 ] && [ "${stop_stage}" -ge 1 ]; then
    log "Stage 1: Data preparation for data/${train_set}, data/${valid_set}"
    # shellcheck disable=SC2086
    local/data.sh ${local_data_opts}
fi

if [ "${stage}" -le 2 ] && [ "${stop_stage}" -ge 2 ]; then
    log "Stage 2: Format wav.scp: data/ -> ${data_feats}"
    for dset in "${train_set}" "${valid_set}"; do
        dir=${data_feats}/${dset}
        utils/copy_data_dir.sh --validate_opts "--no-text --non-print" "data/${dset}" "${dir}"
        rm -f "${dir}"/{segments,wav.scp,reco2file_and_channel,reco2dur}
        opts=()
        if [ -e "data/${dset}/segments" ]; then opts=(--segments "data/${dset}/segments"); fi
        scripts/audio/format_wav_scp.sh --nj "${nj}" --cmd "${train_cmd}" --fs 16k \
            --audio-format "${audio_format}" "${opts[@]}" "data/${dset}/wav.scp" "${dir}"
        echo raw >"${dir}/feats_type"
    done
fi

stats=${expdir}/ssl_stats_raw/${train_set}.options
if [ "${stage}" -le 3 ] && [ "${stop_stage}" -ge 3 ]; then
    log "Stage 3: Mean and std of the log-mel of ${data_feats}/${train_set} -> ${stats}"
    mkdir -p "${stats%/*}"
    ${python} -c '
import sys
from espnet2_sslam.corpus.fbank import fbank_statistics
paths = [line.rstrip("\n").split(" ", 1)[1] for line in open(sys.argv[1])]
paths = paths[:: -(-len(paths) // 100_000)]  # evenly spaced ones of very many
found = fbank_statistics(paths, int(sys.argv[2]))
print(*(f"--encoder_conf fbank_{key}={found[key]}" for key in ("mean", "std")))
' "${data_feats}/${train_set}/wav.scp" "${nj}" >"${stats}"
fi

start=${pretrained_model}
for config in ${train_configs}; do
    exp=${expdir}/ssl_$(basename "${config}" .yaml)${ssl_tag:+_${ssl_tag}}
    if [ "${stage}" -le 4 ] && [ "${stop_stage}" -ge 4 ]; then
        log "Stage 4: Training: ${config} -> ${exp}, log: ${exp}/train.log"
        jobname=${exp}/train.log
        if [[ "${cuda_cmd}" = *queue* ]]; then jobname=${exp##*/}; fi # no "/" in SGE
        begin="--init_param ${start}"
        if [ -z "${start}" ]; then begin=$(<"${stats}"); fi
        # shellcheck disable=SC2086
        ${python} -m espnet2.bin.launch --cmd "${cuda_cmd} --name ${jobname}" \
            --log "${exp}/train.log" --ngpu "${ngpu}" --num_nodes "${num_nodes}" \
            --init_file_prefix "${exp}/.dist_init_" --multiprocessing_distributed true -- \
            ${python} -m espnet2_sslam.bin.sslam_train --config "${config}" --resume true \
                --train_data_path_and_name_and_type "${data_feats}/${train_set}/wav.scp,speech,sound" \
                --valid_data_path_and_name_and_type "${data_feats}/${valid_set}/wav.scp,speech,sound" \
                --train_shape_file "${data_feats}/${train_set}/utt2num_samples" \
                --valid_shape_file "${data_feats}/${valid_set}/utt2num_samples" \
                --output_dir "${exp}" ${begin} ${ssl_args}
    fi
    start=${exp}/latest.pth:::num_updates # the learning goes on, its schedule begins anew
done

if [ "${stage}" -le 5 ] && [ "${stop_stage}" -ge 5 ]; then
    log "Stage 5: Pack model, with its card: ${expdir}/publish/${exp##*/}"
    # shellcheck disable=SC2086
    ${python} -m espnet2_sslam.bin.sslam publish "${exp}/latest.pth" \
        --output "${expdir}/publish/${exp##*/}" --datasets "$(basename "$(dirname "${PWD}")")" \
        ${hf_repo:+--hf_repo "${hf_repo}"} ${publish_args}
fi

log "Successfully finished. [elapsed=${SECONDS}s]"
