#!/usr/bin/env bash
# SSLAM from data to scores. `./run.sh --help` explains; `./run.sh` runs the demo.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# General
stage=1
stop_stage=7
ngpu=0
num_nodes=1
nj=3
python=
seeds="1 2 3"
models="random phase1 phase2"
replace=false
keep=false
verify=false
downstream=
protocol="finetune linear"
# Data
corpus=mini
corpus_dir=
data_args=
feats_type=raw
format_args=
datadir=
dumpdir=
# Training
expdir=
pretrain_config=conf/pretrain_eat_tiny.yaml
pretrain2_config=conf/pretrain_sslam_tiny.yaml
pretrain_args=
pretrain1_args=
pretrain2_args=
phase1=
pretrain_tag=
pretrain_from=
finetune_config=
finetune_args=
finetune_tag=
fbank_stats=given
# SUPERB and HEAR
superb_tasks=
superb_upstreams="fbank_no_cmvn random phase1 phase2"
superb_lrs="1e-2 1e-3 1e-4 1e-5"
superb_args=
# Publishing
publish=phase2
publish_args=
hf_repo=
hf_args=

help_message="Usage: ./run.sh [--option value ...]

Stages
  1 data preparation -> data/          5 pre-training phase 2 (SSLAM: mixtures)
  2 audio formatting -> dump/          6 fine-tuning and linear evaluation
  3 data report and statistics         7 inference, scoring, RESULTS.md
  4 pre-training phase 1 (EAT)         8 SUPERB and HEAR by s3prl (when asked for)
                                       9 folder for others, upload (when asked for)
Each may be run again: finished work is skipped while the contents of its inputs, its
options and its results are the same; interrupted training is continued. A training that
was made from something else is never moved away unasked (--replace, --keep).

Options [default]
 General
  --stage N --stop_stage N    first and last stage [${stage} ${stop_stage}]
  --ngpu N                    GPUs per training, 0 for CPU [${ngpu}]
  --num_nodes N               nodes per training; not local, see cmd.sh [${num_nodes}]
  --nj N                      processes, or jobs at a time, see cmd.sh [${nj}]; on
                              CPU also trainings at a time
  --seeds \"N ...\"             one pre-training and one fine-tuning each [${seeds}]
  --models \"WORD ...\"         what is fine-tuned [${models}];
                              phase2:mixed, phase2:both: with mixtures only, or without
                              source retention; phase1_more or phase2:unmixed: without
                              mixtures, as many updates and rows as phase 2: its control;
                              phase2:YAML: phase 2 by another config;
                              NAME=WEIGHTS: weights from elsewhere (the authors' file or
                              export, a Hugging Face id, a folder of sslam convert);
                              NAME=beats:FILE: BEATs, with the same configs
  --replace true              trainings and data that were made from something else are
                              moved away and made anew, and so is what follows [ask]
  --keep true                 they are gone on with, as kept.txt and RESULTS.md then say
  --verify true               read all audio and results again, even where size, times
                              and inode are what they were
  --python PY                 interpreter to use as it is [path.sh finds or builds one]
 Benchmarks
  --downstream \"WORD ...\"     stages 1-3 and 6-7 for each, stages 4-5 for --corpus; the
                              words are those of conf/benchmarks.txt
  --protocol \"WORD ...\"       finetune, linear (where the paper has it); probes beyond the
                              paper: mean, attentive, weighted, gated, prototypes
                              [${protocol}]
 Data
  --corpus NAME               mini (made here) or another local/data_<corpus>.py [${corpus}]
  --corpus_dir DIR            where the corpus is [db.sh]
  --data_args \"...\"           more options of local/data_<corpus>.py
  --feats_type TYPE           raw, or fbank: features as kaldi ark [${feats_type}]
  --format_args \"...\"         more options of espnet2_sslam.bin.format_audio
  --datadir --dumpdir --expdir DIR   [data/<corpus> dump/<corpus> exp/<corpus>]
 Training
  --pretrain_config YAML      phase 1 [${pretrain_config}]
  --pretrain2_config YAML     phase 2 [${pretrain2_config}]
  --pretrain_args \"...\"       more options of espnet2_sslam.bin.sslam_train; quotes in
                              any --..._args keep blanks: \"--a 'b c'\"
  --pretrain1_args, --pretrain2_args \"...\"   the same for phase 1, or phase 2, alone
  --phase1 WEIGHTS            instead of stage 4: the authors' EAT file or export, a
                              Hugging Face id, a folder of sslam convert, a training;
                              {seed} in it stands for the seed
  --pretrain_tag TAG          name of the pre-training [from the configs]
  --pretrain_from DIR         experiment whose phases 1 and 2 are fine-tuned [--expdir]
  --finetune_config YAML      one, or several in quotes [conf/linear_tiny.yaml, or
                              those of the benchmark]
  --finetune_args \"...\"       more options of espnet2_sslam.bin.sslam_cls_train
  --finetune_tag TAG          name of the fine-tuning [from the config]
  --fbank_stats given|own     mean and std of the log-mel in fine-tuning [${fbank_stats}]
                              given: by the config, else by the weights; own: those of
                              the prepared corpus (stage 3), but not for BEATs
 SUPERB and HEAR
  --superb_tasks \"TASK=DIR ...\"  ks, ic, sid, er of SUPERB, HearESC50 and others of HEAR
  --superb_upstreams \"WORD ...\"  phase1, phase2 or another pre-training of --models,
                              random (the same network), NAME=WEIGHTS, a name of s3prl
                              [${superb_upstreams}]
  --superb_lrs \"LR ...\"       the best one on dev is tested [${superb_lrs}]
  --superb_args \"...\"         more options of superb/sslam_superb.py, such as
                              --steps 1000 or --options freq=mean
 Publishing
  --publish \"WORD ...\"        phase1, phase2 or another pre-training of --models (of the
                              first seed) or phase2_seed3; a run such as
                              linear_tiny/phase2_sslam_tiny_seed1/mini; or weights from
                              elsewhere, see sslam publish [${publish}]
  --publish_args \"...\"        more options of sslam publish, such as --license cc-by-4.0
  --hf_repo USER/NAME         upload there, after a look at the folder [no upload]
  --hf_args \"...\"             --private, --revision BRANCH, --overwrite

Examples
  ./run.sh                                          the demo
  ./run.sh --corpus esc50 --corpus_dir DIR          ESC-50, cross-validated
  ./run.sh --corpus folder --corpus_dir DIR --ngpu 1 --seeds 1 \\
      --pretrain_config conf/pretrain_eat_base.yaml \\
      --pretrain2_config conf/pretrain_sslam_base.yaml --stop_stage 5
  ./run.sh --downstream \"as20k esc50 ks1 ks2 spass urbansed idmt\" --ngpu 1 \\
      --models sslam=SSLAM_Pretrained.pt                released weights, on benchmarks"

given=("$@")
# ESPnet's options of the same purpose under another name
declare -A meant=(
    [skip_train]="--stage 7 scores what is trained"
    [max_bad]="--format_args '--max_bad SHARE' for the data, --pretrain_args for a training"
    [skip_eval]="--stop_stage 6 ends before scoring"
    [inference_model]="stage 7 scores the last and the best model"
    [pretrained_model]="--models NAME=WEIGHTS, or for phase 2 --phase1 WEIGHTS"
    [download_model]="--models NAME=USER/MODEL"
    [local_data_opts]="--data_args"
    [ssl_config]="--pretrain_config and --pretrain2_config"
    [ssl_tag]="--pretrain_tag"
    [ssl_args]="--pretrain_args"
    [hubert_config]="--pretrain_config and --pretrain2_config"
    [cls_config]="--finetune_config"
    [asr_config]="--finetune_config; for ASR asr/run.sh"
    [cls_args]="--finetune_args"
    [asr_args]="--finetune_args; for ASR asr/run.sh"
    [cls_tag]="--finetune_tag"
    [cls_exp]="--expdir"
    [ssl_exp]="--expdir"
    [asr_exp]="--expdir"
    [inference_nj]="--nj"
    [gpu_inference]="--ngpu"
    [train_set]="--corpus; its local/data_<corpus>.py names the splits"
    [valid_set]="--corpus; its local/data_<corpus>.py names the splits"
    [test_sets]="--corpus; its local/data_<corpus>.py names the splits"
    [feats_normalize]="--fbank_stats"
    [audio_format]="--format_args '--audio_format FORMAT'"
    [fs]="audio is always formatted to 16 kHz"
    [skip_data_prep]="--stage 4 begins with training"
    [skip_upload]="nothing is uploaded without --hf_repo"
    [skip_packing]="--stop_stage 7 ends before stage 9, which packs"
    [skip_upload_hf]="nothing is uploaded without --hf_repo"
    [skip_stages]="--stage and --stop_stage"
    [train_config]="--pretrain_config and --pretrain2_config, or --finetune_config"
    [beats_args]="--pretrain_args"
    [asr_tag]="--finetune_tag"
    [external_teacher_model]="--models NAME=WEIGHTS, or for phase 2 --phase1 WEIGHTS"
    [inference_ssl_model]="--publish RUN packs its last weights"
    [inference_asr_model]="for ASR asr/run.sh --inference_model"
    [inference_config]="for ASR asr/run.sh --inference_args"
    [inference_args]="for ASR asr/run.sh --inference_args"
    [nbpe]="for ASR asr/run.sh --nbpe"
    [token_type]="the labels are the classes of --corpus; for ASR asr/run.sh"
    [token_list]="the labels are the classes of --corpus"
    [text_classes]="the labels are the classes of --corpus"
    [classification_type]="--corpus says it; of own data --data_args '--task multi_label'"
    [batch_size]="--pretrain_args or --finetune_args '--batch_size N'"
    [ignore_init_mismatch]="weights of other sizes are refused"
    [use_lightning]="ESPnet's own trainer trains"
    [use_corpus_fbank_stats]="pre-training always does; for fine-tuning --fbank_stats own"
    [max_wav_duration]="--format_args '--cut SECONDS' cuts long recordings"
    [min_wav_duration]="stage 3's report counts clips that are too short"
    [speed_perturb_factors]="augment_conf of --finetune_config has the augmentations"
    [speech_fold_length]="--pretrain_args '--model_conf clip_frames=N', 10 ms each"
    [cls_stats_dir]="--dumpdir; stage 3 writes its statistics there"
    [ssl_stats_dir]="--dumpdir; stage 3 writes its statistics there"
    [asr_stats_dir]="--dumpdir; stage 3 writes its statistics there"
    [nodes]="--num_nodes N; how jobs start is in cmd.sh"
    [use_ssh]="--num_nodes N; how jobs start is in cmd.sh"
)
. utils/parse_options.sh
. utils/stages.sh
. utils/models.sh
. utils/benchmarks.sh
. utils/superb.sh
. utils/publish.sh

check_numbers stage stop_stage ngpu num_nodes nj
[ -f "local/data_${corpus}.py" ] || die "--corpus is one of" \
    "$(basename -s .py local/data_*.py | sed 's/^data_//' | paste -sd ' '), not '${corpus}'"
[[ "${feats_type}" =~ ^(raw|fbank)$ ]] ||
    die "--feats_type is raw or fbank, not '${feats_type}'"
[[ "${fbank_stats}" =~ ^(own|given)$ ]] ||
    die "--fbank_stats is own or given, not '${fbank_stats}'"
if [ -n "${phase1}" ] && [ -n "${pretrain_tag}" ]; then
    log "--pretrain_tag ${pretrain_tag} names phase 2; phase 1 is ${phase1}"
fi
if [ -n "${pretrain_from}" ] && [ -z "${downstream}" ] && { runs 4 || runs 5; }; then
    die "--pretrain_from takes phases 1 and 2 from elsewhere: leave out stages 4" \
        "and 5 (--stage 6)"
fi
for word in ${seeds}; do
    [[ "${word}" =~ ^[0-9]+$ ]] || die "--seeds holds whole numbers, not '${word}'"
done
[ -n "${seeds}" ] && [ -n "${models}" ] || die "--seeds and --models need a word each"
# shellcheck disable=SC2086 # a list of files
check_configs ${pretrain_config} ${pretrain2_config} ${finetune_config}
check_models
check_benchmarks
check_superb
check_publish

. ./db.sh
. ./path.sh
. ./cmd.sh
# shellcheck disable=SC2086 # a list of files
check_start ${pretrain_config} ${pretrain2_config} ${finetune_config}
check_machine
if [ -n "${downstream}" ]; then
    run_benchmarks
    log "finished ${downstream}"
    exit
fi

: "${datadir:=data/${corpus}}" "${dumpdir:=dump/${corpus}}" "${expdir:=exp/${corpus}}"
: "${pretrain_from:=${expdir}}" "${finetune_config:=conf/linear_tiny.yaml}"
dump="${dumpdir}/${feats_type}"
case "${corpus}" in
    mini) corpus_dir= ;; # stage 1 makes it
    folder) find_corpus AUDIO_FOLDER ;;
    *) find_corpus "${corpus^^}" ;;
esac
audio_list=wav.scp audio_type=sound shape_file=utt2num_samples input_size=1
if [ "${feats_type}" = fbank ]; then
    audio_list=feats.scp audio_type=kaldi_ark shape_file=utt2num_frames input_size=128
fi
split_words data_args "${data_args}"
data_words=("${words[@]}")
split_words format_args "${format_args}"
format_words=("${words[@]}")
plan_jobs

if runs 1; then
    log "stage 1: data preparation -> ${datadir}"
    attend "${once[@]}" "stage 1" "${datadir}" --ask --replaced "${datadir}_replaced" \
        "${asked[@]}" --input local ${corpus_dir:+"${corpus_dir}"} \
        --output "${datadir}" \
        -- local/data.sh --corpus "${corpus}" --corpus_dir "${corpus_dir}" \
        --datadir "${datadir}" --python "${python}" --nj "${nj}" "${array[@]}" \
        "${data_words[@]}"
fi

if runs 2; then
    log "stage 2: audio formatting (${feats_type}) -> ${dump}"
    need 2 1 "${datadir}"
    attend "${once[@]}" "stage 2" "${dump}" --exclude report "${asked[@]}" --output "${dump}" \
        --input "${datadir}" --listed "${datadir}"/*/*/wav.scp \
        -- "${python}" -m espnet2_sslam.bin.format_audio --datadir "${datadir}" \
        --outdir "${dump}" --feats_type "${feats_type}" --nj "${nj}" "${array[@]}" \
        --verify "${verify}" "${format_words[@]}"
fi

if runs 3; then
    log "stage 3: data report -> ${dump}/report/report.txt"
    need 3 2 "${dump}"
    report_inputs
    attend "${once[@]}" "stage 3" "${dump}/report" "${asked[@]}" "${files[@]}" \
        --output "${dump}/report/report.json" "${dump}/report/fbank_stats.json" \
        -- "${python}" -m espnet2_sslam.bin.data_report --dump "${dump}" --nj "${nj}" \
        "${array[@]}"
fi

if runs 4 && [ -n "${phase1}" ]; then
    log "stage 4: left out, --phase1 gives its weights"
elif runs 4; then
    log "stage 4: pre-training phase 1 (${pretrain_config}), seeds ${seeds}"
    need 4 3 "${dump}/report"
    for seed in ${seeds}; do add_pretraining phase1 "${seed}"; done
    run_jobs 4
fi

if runs 5; then
    log "stage 5: pre-training phase 2 (${pretrain2_config}), seeds ${seeds}"
    need 5 3 "${dump}/report"
    convert_phase1
    for seed in ${seeds}; do
        for word in $(phase2_words); do add_pretraining "${word}" "${seed}"; done
    done
    run_jobs 5
fi

if runs 6; then
    log "stage 6: fine-tuning of ${models} (${finetune_config}), seeds ${seeds}"
    need 6 3 "${dump}/report"
    convert_weights
    if [[ " ${models} " = *" "@(phase1|random)" "* ]]; then convert_phase1; fi
    for_each_finetuning add_finetuning
    run_jobs 6
fi

if runs 7; then
    log "stage 7: inference and scoring -> ${expdir}/RESULTS.md"
    need 7 3 "${dump}/report"
    for_each_finetuning add_scoring
    run_jobs 7
    # shellcheck disable=SC2046 # a list of words
    attend "${python}" -m espnet2_sslam.bin.sslam_results --expdir "${expdir}" \
        --dump "${dump}" --output "${expdir}/RESULTS.md" \
        --pretrain_from "${pretrain_from}" --expect $(expected_runs)
fi

if runs 8 && [ -z "${superb_tasks}" ]; then
    log "stage 8: left out, --superb_tasks names no task"
elif runs 8; then
    log "stage 8: ${superb_upstreams} on ${superb_tasks} -> ${expdir}/SUPERB.md"
    run_superb
fi

if runs 9; then
    log "stage 9: publishing of ${publish} -> ${expdir}/publish"
    for word in ${publish}; do publish_model "${word}"; done
fi

log "finished stages ${stage} to ${stop_stage}"
