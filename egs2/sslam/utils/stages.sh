# shellcheck shell=bash disable=SC2154,SC2034
# What the stages of run.sh share: checks, names of directories, jobs. The options of
# run.sh are its variables.

log() { printf '%s (run.sh) %s\n' "$(date '+%Y-%m-%dT%H:%M:%S')" "$*"; }

die() {
    echo "run.sh: $*" >&2
    exit 1
}

# runs <stage>: is this stage asked for?
runs() { [ "${stage}" -le "$1" ] && [ "${stop_stage}" -ge "$1" ]; }

# need <stage> <earlier stage> <dir>: the earlier stage must have ended well there.
# Data that somebody made by hand counts too: it was never begun here.
need() {
    if [ -e "$3/.done" ]; then return 0; fi
    if [ -e "$3/downstream.txt" ] && [ ! -e "$3/.begun" ]; then return 0; fi
    die "stage $1 needs a finished $3; run stage $2 with the same options first" \
        "(--stage $2)"
}

# corpora: the names that --corpus takes
corpora() {
    basename -s .py local/data_*.py | sed 's/^data_//' | paste -sd ' ' | sed 's/ /, /g'
}

check_options() {
    local option word
    for option in stage stop_stage ngpu num_nodes nj; do
        [[ "${!option}" =~ ^[0-9]+$ ]] ||
            die "--${option} is a whole number, not '${!option}'"
    done
    [ "${nj}" -ge 1 ] && [ "${num_nodes}" -ge 1 ] ||
        die "--nj and --num_nodes start at 1"
    [ "${stage}" -le "${stop_stage}" ] ||
        die "--stage ${stage} comes after --stop_stage ${stop_stage}"
    [ -f "local/data_${corpus}.py" ] ||
        die "--corpus is one of $(corpora), not '${corpus}'"
    case "${feats_type}" in
        raw | fbank) ;;
        *) die "--feats_type is raw or fbank, not '${feats_type}'" ;;
    esac
    if [ -n "${pretrain_from}" ] && [ -z "${downstream}" ] && { runs 4 || runs 5; }; then
        die "--pretrain_from takes phases 1 and 2 from elsewhere: leave out stages 4" \
            "and 5 (--stage 6)"
    fi
    check_models
    check_benchmarks
    for word in ${seeds}; do
        [[ "${word}" =~ ^[0-9]+$ ]] || die "--seeds holds whole numbers, not '${word}'"
    done
    [ -n "${seeds}" ] && [ -n "${models}" ] || die "--seeds and --models need a word each"
    for word in ${pretrain_config} ${pretrain2_config} ${finetune_config}; do
        [ -f "${word}" ] || die "there is no config ${word} (in $(pwd))"
    done
}

# Directories, word lists and how many jobs run at a time.
set_defaults() {
    : "${datadir:=data/${corpus}}" "${dumpdir:=dump/${corpus}}" "${expdir:=exp/${corpus}}"
    : "${pretrain_from:=${expdir}}" "${finetune_config:=conf/linear_tiny.yaml}"
    dump="${dumpdir}/${feats_type}"
    if [ -z "${corpus_dir}" ]; then
        local variable="${corpus^^}" # of db.sh
        if [ "${corpus}" = folder ]; then variable=AUDIO_FOLDER; fi
        corpus_dir="${!variable:-}"
    fi
    corpus_input=()
    if [ "${corpus}" != mini ] && runs 1; then
        [ -n "${corpus_dir}" ] ||
            die "--corpus ${corpus} needs --corpus_dir (or ${variable:-a line} in db.sh)"
        [ -e "${corpus_dir}" ] || die "there is no corpus in ${corpus_dir}"
        corpus_input=(--input "${corpus_dir}")
    fi
    read -r -a data_words <<<"${data_args}"
    read -r -a format_words <<<"${format_args}"
    read -r -a pretrain_words <<<"${pretrain_args}"
    read -r -a finetune_words <<<"${finetune_args}"
    at_once="${nj}" launch_cmd="${train_cmd}"
    if [ "${ngpu}" -gt 0 ]; then launch_cmd="${cuda_cmd}"; fi
    if [ "${ngpu}" -gt 0 ] && [ "${cuda_cmd}" = run.pl ]; then
        at_once=1 # the GPUs of this machine serve one training after the other
    fi
    local threads=$(($(nproc) / at_once))
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((threads > 1 ? threads : 1))}"
}

# once <name> <dir> <more options of once.py>
once() {
    local name="$1" dir="$2"
    shift 2
    once.py --name "${name}" --dir "${dir}" "$@"
}

# Jobs are command lines; run_jobs runs those that were added, ${at_once} at a time.
jobs=()
add_job() {
    local line
    printf -v line '%q ' "$@"
    jobs+=("${line}")
}
run_jobs() {
    if [ "${#jobs[@]}" -eq 0 ]; then
        log "stage $1: there is nothing to do"
        return 0
    fi
    # shellcheck disable=SC2016 # expanded by the inner shell
    printf '%s\0' "${jobs[@]}" |
        xargs -0 -n 1 -P "${at_once}" bash -c 'eval "$1"' job ||
        die "stage $1 did not end well: mend what the lines above name and run it again"
    jobs=()
}

# tag_of <config> <prefix to drop> <args>: the name of a config and its extra options,
# cut with a hash behind it where it is too long for the name of a file
tag_of() {
    local tag
    tag="$(basename "$1" .yaml)"
    tag="${tag#"$2"}$(sed -e 's/--/_/g' -e 's/[^A-Za-z0-9_.-]//g' <<<"$3")"
    if [ "${#tag}" -gt 80 ]; then
        tag="${tag:0:70}_$(sha256sum <<<"${tag}" | cut -c 1-8)"
    fi
    if [ "${feats_type}" = fbank ]; then tag="${tag}_fbank"; fi
    echo "${tag}"
}

# pretrain_dir <phase> <seed>
pretrain_dir() {
    local config="${pretrain_config}"
    if [ "$1" = 2 ]; then config="${pretrain2_config}"; fi
    local tag="${pretrain_tag:-$(tag_of "${config}" pretrain_ "${pretrain_args}")}"
    echo "${pretrain_from}/pretrain/phase$1_${tag}_seed$2"
}

# finetune_tag_of <config>
finetune_tag_of() {
    local configs
    read -r -a configs <<<"${finetune_config}"
    if [ -z "${finetune_tag}" ]; then
        tag_of "$1" "" "${finetune_args}"
    elif [ "${#configs[@]}" -eq 1 ]; then
        echo "${finetune_tag}"
    else
        echo "${finetune_tag}_$(basename "$1" .yaml)"
    fi
}
finetune_tags() {
    local config
    for config in ${finetune_config}; do finetune_tag_of "${config}"; done
}

# fbank_stats: the options that give a fresh encoder the corpus's mean and spread
fbank_stats() {
    "${python}" - "${dump}/report/fbank_stats.json" <<'EOF'
import json
import sys

stats = json.load(open(sys.argv[1], encoding="utf-8"))
for key in ("mean", "std"):
    print(f"--encoder_conf fbank_{key}={stats[key]}")
EOF
}

# data_options <train|valid> <dir>: sets `options` and `inputs` for the audio of a split
data_options() {
    local list=wav.scp kind=sound
    if [ "${feats_type}" = fbank ]; then list=feats.scp kind=kaldi_ark; fi
    options+=(--"$1"_data_path_and_name_and_type "$2/${list},speech,${kind}"
        --"$1"_shape_file "$2/${shape_file}")
    inputs+=(--input "$2/${list}" --input "$2/${shape_file}")
}

# start_options <config> <seed>: sets `options` and `inputs` for any training
start_options() {
    shape_file=utt2num_samples
    local input_size=1
    if [ "${feats_type}" = fbank ]; then shape_file=utt2num_frames input_size=128; fi
    options=(--config "$1" --seed "$2" --input_size "${input_size}" --resume true)
    inputs=(--input "$1")
}

# launch <name> <dir> <log> <nodes> <Python words>: a job that ESPnet's launcher starts,
# with `inputs` (its --input and --output options for once.py)
launch() {
    local name="$1" dir="$2" log="$3" nodes="$4"
    shift 4
    add_job once.py --name "${name}" --dir "${dir}" --log "${log}" "${inputs[@]}" \
        -- "${python}" -m espnet2.bin.launch --cmd "${launch_cmd}" --log "${log}" \
        --ngpu "${ngpu}" --num_nodes "${nodes}" --init_file_prefix "${dir}/.dist_init_" \
        -- "${python}" "$@"
}

# add_training <name> <dir> <module of espnet2_sslam.bin, or script>: a job from
# `options` and `inputs`
add_training() {
    local command=(-m "espnet2_sslam.bin.$3")
    if [[ "$3" = *.py ]]; then command=("$3"); fi
    inputs+=(--output "$2/config.yaml" --output "$2/latest.pth"
        --replaced "${expdir}_replaced")
    launch "$1" "$2" "$2/train.log" "${num_nodes}" \
        "${command[@]}" --output_dir "$2" "${options[@]}"
}

# add_pretraining <phase> <seed> <config> <more options>
add_pretraining() {
    local phase="$1" seed="$2" config="$3" options inputs shape_file stats
    shift 3
    start_options "${config}" "${seed}"
    data_options train "${dump}/pretrain/train"
    data_options valid "${dump}/pretrain/valid"
    if [ "${phase}" = 2 ]; then
        inputs+=(--input "$(pretrain_dir 1 "${seed}")/latest.pth")
    fi
    read -r -d '' -a stats < <(fbank_stats) || true
    options+=("${stats[@]}" "$@" "${pretrain_words[@]}")
    add_training "phase ${phase} seed ${seed}" "$(pretrain_dir "${phase}" "${seed}")" \
        sslam_train
}

# for_each_finetuning <function>: call it for every run of stages 6 and 7 with
# <dir> <config> <model> <seed> <a line of downstream.txt as words>
for_each_finetuning() {
    local config model seed line words
    for config in ${finetune_config}; do
        for seed in ${seeds}; do
            for model in ${models}; do
                while read -r line; do
                    read -r -a words <<<"${line}"
                    "$1" "${expdir}/$(finetune_tag_of "${config}")/${model%%=*}_seed${seed}/${words[0]//\//_}" \
                        "${config}" "${model}" "${seed}" "${words[@]}"
                done <"${dump}/downstream.txt"
            done
        done
    done
}

# add_finetuning <dir> <config> <model> <seed> <name> <task> <train> <valid> <tests>
add_finetuning() {
    local dir="$1" config="$2" model="$3" seed="$4" name="$5" task="$6" split
    local options inputs shape_file
    start_options "${config}" "${seed}"
    options+=(--class_list "${dump}/${7%%/*}/classes.txt" --model_conf "task=${task}")
    inputs+=(--input "${dump}/${7%%/*}/classes.txt")
    for split in "train $7" "valid $8"; do
        data_options "${split%% *}" "${dump}/${split#* }"
        options+=(--"${split%% *}"_data_path_and_name_and_type
            "${dump}/${split#* }/text,label,text")
        inputs+=(--input "${dump}/${split#* }/text")
    done
    if [ -f "${dump}/$7/weights" ]; then # for balanced_clips_per_epoch of the config
        options+=(--sample_weights "${dump}/$7/weights")
        inputs+=(--input "${dump}/$7/weights")
    fi
    if [ "${model}" = random ]; then
        random_encoder "${seed}"
    else
        pretrained_encoder "${model}" "${seed}"
    fi
    options+=("${finetune_words[@]}")
    add_training "${name} ${model%%=*} seed ${seed}" "${dir}" "$(trainer "${model}")"
}

# best_model <dir> <task>: the checkpoint of the best epoch on the validation set
best_model() {
    local measure
    for measure in accuracy mAP; do
        if [ "${measure}" = accuracy ] && [ "$2" != multi_class ]; then continue; fi
        if [ -e "$1/valid.${measure}.best.pth" ]; then
            echo "$1/valid.${measure}.best.pth"
            return 0
        fi
    done
    die "$1 holds no valid.mAP.best.pth; best_model_criterion of the fine-tuning" \
        "config must hold [valid, mAP, max]"
}

# add_scoring <dir> <config> <model> <seed> <name> <task> <train> <valid> <tests>
add_scoring() {
    local dir="$1" task="$6" list=wav.scp kind=sound test tests best options inputs
    if [ "${feats_type}" = fbank ]; then list=feats.scp kind=kaldi_ark; fi
    need 7 6 "${dir}"
    best="$(best_model "${dir}" "${task}")"
    options=(--config "${dir}/config.yaml" --list "${list},speech,${kind}"
        --checkpoint "last=${dir}/latest.pth" --checkpoint "best=${best}"
        --class_list "${dump}/${7%%/*}/classes.txt" --task "${task}")
    inputs=(--input "${dir}/config.yaml" --input "${dir}/latest.pth" --input "${best}")
    IFS=, read -r -a tests <<<"$9"
    for test in "${tests[@]}"; do
        options+=(--test_dir "${dump}/${test}")
        inputs+=(--input "${dump}/${test}/${list}" --input "${dump}/${test}/text")
        for which in last best; do
            inputs+=(--output "${dir}/${which}/${test##*/}/predictions.npz"
                --output "${dir}/${which}/${test##*/}/metrics.json")
        done
    done
    launch "scoring of $5 ${3%%=*} seed $4" "${dir}/scoring" "${dir}/scoring/scoring.log" 1 \
        utils/score_model.py --output_dir "${dir}" "${options[@]}"
}
