#!/usr/bin/env bash
# ASR of spoken digits with ESPnet's own commands: stock encoder, and SSLAM in its place.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# General
stage=1
stop_stage=6
ngpu=0
num_nodes=1
nj=2
python=
replace=false
keep=false
verify=false
seed=1
# Data
corpus_dir=
datadir=data
num_train=600
num_test=60
nbpe=40
test_speaker=theo
# Training
expdir=exp
asr_configs="conf/asr_conformer_tiny.yaml conf/asr_sslam_encoder_tiny.yaml conf/asr_sslam_frontend_tiny.yaml"
asr_args=
pretrained=
# Decoding
inference_model=valid.acc.best.pth
inference_args="--beam_size 5 --ctc_weight 0.5"

help_message="Usage: ./run.sh --corpus_dir DIR [--option value ...]

Trains a small hybrid CTC/attention ASR on strings of spoken digits, once with each
configuration, and prints the error rates of all in one table. SSLAM comes in by one
option, the configuration: see the header of each.

Stages
  1 digit strings made from single digits -> data/     4 training (asr_train)
  2 SentencePiece BPE tokens                           5 decoding (asr_inference)
  3 shapes and statistics (asr_train --collect_stats)  6 error rates -> RESULTS.md
Each may be run again: finished work is skipped while its inputs, options and results
are the same; interrupted training is continued.

Options [default]
  --corpus_dir DIR        Free Spoken Digit Dataset: {digit}_{speaker}_{n}.wav or .flac
                          in it or in its recordings/ [FSDD in db.sh]
  --stage N --stop_stage N    first and last stage [${stage} ${stop_stage}]
  --ngpu N                GPUs per training, 0 for CPU [${ngpu}]
  --num_nodes N           nodes per training; not local, see ../cmd.sh [${num_nodes}]
  --nj N                  trainings and decodings at a time [${nj}]
  --replace true          trainings and data that were made from something else are moved
                          away and made anew [ask]
  --keep true             they are gone on with
  --verify true           read all inputs again, even where size and times are the same
  --python PY             interpreter to use as it is [../path.sh finds or builds one]
  --seed N                of the strings and of the trainings [${seed}]
  --test_speaker NAME     is heard in one of the two test sets only [${test_speaker}]
  --num_train N --num_test N  strings for training, and per test set [${num_train} ${num_test}]
  --nbpe N                BPE tokens [${nbpe}]
  --datadir --expdir DIR  output [${datadir} ${expdir}]
  --asr_configs \"YAML ...\"  one training each
                          [${asr_configs// /
                           }]
  --asr_args \"...\"        more options of asr_train
  --pretrained SOURCE     SSLAM's weights (a folder, file or Hugging Face id, with its
                          own sizes) [random ones, of the configuration's sizes]
  --inference_model PTH   [${inference_model}]
  --inference_args \"...\"  more options of asr_inference [${inference_args}]"

. ../utils/parse_options.sh
. ../utils/stages.sh
. local/jobs.sh
. ../db.sh
check_numbers stage stop_stage ngpu num_nodes nj seed num_train num_test nbpe
[ -n "${asr_configs}" ] || die "--asr_configs needs a file"
# shellcheck disable=SC2086 # a list of files
check_configs ${asr_configs}
find_corpus FSDD
. ../path.sh
. ../cmd.sh
# shellcheck disable=SC2086 # a list of files
check_start ${asr_configs}
check_machine
plan_jobs
tokens="${datadir}/tokens"
split_words asr_args "${asr_args}"
asr_words=("${words[@]}")
split_words inference_args "${inference_args}"
inference_words=("${words[@]}")

if runs 1; then
    log "stage 1: strings of digits -> ${datadir}"
    attend "${once[@]}" "stage 1" "${datadir}" --exclude tokens --ask "${asked[@]}" \
        --replaced "${datadir}_replaced" --input "${corpus_dir}" local \
        --output "${datadir}"/{train,audio} \
        -- "${python}" local/digits.py --corpus_dir "${corpus_dir}" \
        --datadir "${datadir}" --seed "${seed}" --test_speaker "${test_speaker}" \
        --num_train "${num_train}" --num_test "${num_test}"
fi

if runs 2; then
    log "stage 2: ${nbpe} BPE tokens -> ${tokens}"
    need 2 1 "${datadir}"
    attend "${once[@]}" "stage 2" "${tokens}" "${asked[@]}" --input "${datadir}/train/text" \
        --output "${tokens}"/{bpe.model,tokens.txt} -- "${python}" local/tokens.py \
        --text "${datadir}/train/text" --outdir "${tokens}" --nbpe "${nbpe}"
fi

if runs 3; then
    log "stage 3: shapes and statistics of each configuration"
    need 3 2 "${tokens}"
    for config in ${asr_configs}; do add_statistics; done
    run_jobs 3
fi

if runs 4; then
    log "stage 4: training of each configuration"
    for config in ${asr_configs}; do add_asr_training; done
    run_jobs 4
fi

if runs 5; then
    log "stage 5: decoding of the test sets"
    for config in ${asr_configs}; do add_decoding; done
    run_jobs 5
fi

if runs 6; then
    log "stage 6: error rates -> ${expdir}/RESULTS.md"
    results=()
    for config in ${asr_configs}; do results+=("$(asr_dir)"); done
    "${python}" local/score.py --datadir "${datadir}" \
        --output "${expdir}/RESULTS.md" "${results[@]}"
fi

log "finished stages ${stage} to ${stop_stage}"
