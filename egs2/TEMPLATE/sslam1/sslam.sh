#!/usr/bin/env bash
# shellcheck disable=SC1091,SC2154
# Pre-training by SSLAM, from ESPnet's data folders. As TEMPLATE/ssl1/ssl.sh, but for
# espnet2_sslam's task: phase 1 (EAT's objective), then phase 2 (mixtures of sounds).
set -euo pipefail

log() { echo "$(date +%FT%T) (sslam.sh) $*"; }

# Options, named as in ssl.sh
stage=1              # first stage
stop_stage=5         # last stage
ngpu=1               # GPUs of a training; 0: CPU
num_nodes=1          # machines of a training
nj=32                # jobs that format audio at a time
dumpdir=dump         # 16 kHz audio
expdir=exp           # trainings
python=python3       # interpreter that has espnet2_sslam
local_data_opts=     # for local/data.sh
audio_format=wav     # wav (fast to read) or flac
train_set=           # folder of data/ to learn from (required)
valid_set=           # folder of data/ to validate on (required)
train_configs=       # a config per phase, one trained from the other (required)
pretrained_model=    # weights that the first begins with
ssl_tag=             # ends the names of the trainings
ssl_args=            # options of all trainings, such as "--max_epoch 10"
publish_args=        # options of `sslam publish`, such as "--license cc-by-4.0"
hf_repo=             # Hugging Face repository to upload to

help_message="usage: $0 --train_set SET --valid_set SET \\
    --train_configs \"conf/train_eat_own.yaml conf/train_sslam_own.yaml\"
options (default):
$(sed -n '/^# Options, /,/^hf_repo/s/^\([a-z_]*\)=\([^ ]*\) *# /    --\1 (\2)  /p' "$0")"

. utils/parse_options.sh
. ./path.sh
. ./cmd.sh

for option in train_set valid_set train_configs; do
    [ -n "${!option}" ] || { log "${help_message}"; log "error: --${option} is needed"; exit 2; }
done
data_feats=${dumpdir}/raw

if [ "${stage}" -le 1 ] && [ "${stop_stage}" -ge 1 ]; then
    log "stage 1: data preparation -> data/${train_set}, data/${valid_set}"
    # shellcheck disable=SC2086
    local/data.sh ${local_data_opts}
fi

if [ "${stage}" -le 2 ] && [ "${stop_stage}" -ge 2 ]; then
    log "stage 2: 16 kHz mono audio -> ${data_feats}"
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
    log "stage 3: mean and std of the log-mel of ${data_feats}/${train_set} -> ${stats}"
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
        log "stage 4: training ${config} -> ${exp}, log: ${exp}/train.log"
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
    log "stage 5: the model and its card -> ${expdir}/publish/${exp##*/}"
    # shellcheck disable=SC2086
    ${python} -m espnet2_sslam.bin.sslam publish "${exp}/latest.pth" \
        --output "${expdir}/publish/${exp##*/}" --datasets "$(basename "$(dirname "${PWD}")")" \
        ${hf_repo:+--hf_repo "${hf_repo}"} ${publish_args}
fi

log "done"
