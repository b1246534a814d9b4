# shellcheck shell=bash disable=SC2154,SC2034
# The trainings of stages 4 to 6 and the scoring of stage 7: where they go, what they
# read, and their commands. The words of --models are random, phase1, phase2,
# NAME=WEIGHTS for weights from elsewhere, and NAME=beats:FILE for BEATs.

# check_models: also sets `weights`, the words whose weights must be converted
check_models() {
    local word name names=" "
    weights=()
    for word in ${models}; do
        name="${word%%=*}"
        case "${word}" in
            random | phase1 | phase2) ;;
            random=* | phase1=* | phase2=* | *=)
                die "--models: '${word}' needs the form NAME=WEIGHTS with a new name" ;;
            *=*)
                [[ "${name}" =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] ||
                    die "--models: the name '${name}' is not of letters, digits, . _ -"
                if [[ "${word}" != *=beats:* ]]; then weights+=("${word}"); fi
                ;;
            *) die "--models holds random, phase1, phase2, NAME=WEIGHTS, not '${word}'" ;;
        esac
        if [[ "${names}" = *" ${name} "* ]]; then die "--models holds ${name} twice"; fi
        names+="${name} "
    done
}

# model_names: those of --models without the weights
model_names() { for word in ${models}; do echo "${word%%=*}"; done; }

# tag_of <config> <prefix to drop> <args>: the name of a config and its extra options,
# cut with a hash behind it where it is too long for the name of a file
tag_of() {
    local tag
    tag="$(basename "$1" .yaml)"
    tag="${tag#"$2"}$(sed -e 's/--/_/g' -e 's/[^A-Za-z0-9_.-]//g' <<<"$3")"
    if [ "${#tag}" -gt 80 ]; then
        tag="${tag:0:70}_$(sha256sum <<<"${tag}" | cut -c 1-8)"
    fi
    if [ "${feats_type}" = fbank ]; then tag+="_fbank"; fi
    echo "${tag}"
}

# phase_config <phase>
phase_config() {
    if [ "$1" = 1 ]; then echo "${pretrain_config}"; else echo "${pretrain2_config}"; fi
}

# pretrain_dir <phase> <seed>
pretrain_dir() {
    local tag="${pretrain_tag}"
    : "${tag:=$(tag_of "$(phase_config "$1")" pretrain_ "${pretrain_args}")}"
    echo "${pretrain_from}/pretrain/phase$1_${tag}_seed$2"
}

# finetune_tag_of <config>
finetune_tag_of() {
    local own=""
    if [ "${fbank_stats}" = own ]; then own=_own_stats; fi
    if [ -z "${finetune_tag}" ]; then
        tag_of "$1" "" "${finetune_args}${own}"
    elif [ "${finetune_config// /}" = "$1" ]; then
        echo "${finetune_tag}"
    else
        echo "${finetune_tag}_$(basename "$1" .yaml)"
    fi
}
finetune_tags() { for config in ${finetune_config}; do finetune_tag_of "${config}"; done; }

# weights_dir <word>: where the weights of NAME=WEIGHTS lie once they are converted
weights_dir() { echo "${pretrain_from}/models/${1%%=*}"; }

# convert_weights: encoder.pth and config.yaml of every NAME=WEIGHTS
convert_weights() {
    local word source dir input
    for word in "${weights[@]}"; do
        source="${word#*=}" dir="$(weights_dir "${word}")" input=()
        if [ -e "${source}" ]; then input=(--input "${source}"); fi
        once.py "weights ${word%%=*}" "${dir}" --replaced "${pretrain_from}_replaced" \
            "${input[@]}" --output "${dir}/encoder.pth" "${dir}/config.yaml" \
            -- "${python}" utils/convert_weights.py "${source}" "${dir}"
    done
}

# add_fbank_stats: a fresh encoder gets the mean and spread of the corpus
add_fbank_stats() {
    local words
    read -r -a words < <("${python}" -c '
import json, sys
stats = json.load(open(sys.argv[1], encoding="utf-8"))
print(*(f"--encoder_conf fbank_{key}={stats[key]}" for key in ("mean", "std")))
' "${dump}/report/fbank_stats.json") # (one Python start, no parser of JSON in bash)
    options+=("${words[@]}")
}

# with_input <option> <file>: an option of a training whose file it depends on
with_input() { options+=("$1" "$2") files+=(--input "$2"); }

# start_options <config>: sets `options` and `files` for a training with `seed`
start_options() {
    options=(--config "$1" --seed "${seed}" --input_size "${input_size}" --resume true)
    files=(--input "$1")
}

# add_data <train|valid> <dir> [text]: the audio of a split, and its labels if asked for
add_data() {
    local data="--$1_data_path_and_name_and_type"
    options+=("${data}" "$2/${audio_list},speech,${audio_type}")
    with_input "--$1_shape_file" "$2/${shape_file}"
    files+=(--input "$2/${audio_list}")
    if [ $# -eq 3 ]; then
        options+=("${data}" "$2/$3,label,text")
        files+=(--input "$2/$3")
    fi
}

# add_training <name> <dir> <Python words>: a job from `options` and `files`
add_training() {
    local name="$1" dir="$2"
    shift 2
    files+=(--output "${dir}/config.yaml" "${dir}/latest.pth"
        --replaced "${expdir}_replaced")
    launch "${name}" "${dir}/train.log" "${num_nodes}" "$@" \
        --output_dir "${dir}" "${options[@]}"
}

# add_pretraining <phase> <seed>
add_pretraining() {
    local phase="$1" seed="$2" options files phase1
    start_options "$(phase_config "${phase}")"
    if [ "${phase}" = 2 ]; then
        phase1="$(pretrain_dir 1 "${seed}")"
        need 5 4 "${phase1}"
        # The learning continues, the count of updates starts anew.
        options+=(--init_param "${phase1}/latest.pth:::num_updates")
        files+=(--input "${phase1}/latest.pth")
    fi
    add_data train "${dump}/pretrain/train"
    add_data valid "${dump}/pretrain/valid"
    add_fbank_stats
    options+=("${pretrain_words[@]}")
    add_training "phase ${phase} seed ${seed}" "$(pretrain_dir "${phase}" "${seed}")" \
        -m espnet2_sslam.bin.sslam_train
}

# for_each_finetuning <function>: call it for every run of stages 6 and 7, with `dir`,
# `config`, `model`, `seed`, a line of downstream.txt and `classes` set
for_each_finetuning() {
    local dir config model seed name task train valid tests classes
    for config in ${finetune_config}; do
        for seed in ${seeds}; do
            for model in ${models}; do
                while read -r name task train valid tests; do
                    dir="${expdir}/$(finetune_tag_of "${config}")"
                    dir+="/${model%%=*}_seed${seed}/${name//\//_}"
                    classes="${dump}/${train%%/*}/classes.txt"
                    "$1"
                done <"${dump}/downstream.txt"
            done
        done
    done
}

# random_encoder: an untrained encoder, of the size of phase 1's; or, where no phase is
# asked for, of the first weights that are named
random_encoder() {
    local trained
    trained="$(pretrain_dir 1 "${seed}")"
    if [[ " ${models}" != *" phase"[12]* ]] && [ "${#weights[@]}" -gt 0 ]; then
        trained="$(weights_dir "${weights[0]}")"
    fi
    if [ -e "${trained}/.done" ]; then
        with_input --encoder_config "${trained}/config.yaml"
    else
        with_input --encoder_config "${pretrain_config}"
        add_fbank_stats
    fi
}

# add_finetuning: of for_each_finetuning
add_finetuning() {
    local options files source phase command=(-m espnet2_sslam.bin.sslam_cls_train)
    start_options "${config}"
    with_input --class_list "${classes}"
    options+=(--model_conf "task=${task}")
    add_data train "${dump}/${train}" text
    add_data valid "${dump}/${valid}" text
    if [ -f "${dump}/${train}/weights" ]; then # for balanced_clips_per_epoch
        with_input --sample_weights "${dump}/${train}/weights"
    fi
    case "${model}" in
        random) random_encoder ;;
        *=beats:*)
            command=(beats/beats_cls_train.py)
            with_input --beats_checkpoint "${model#*=beats:}"
            ;;
        *)
            source="$(weights_dir "${model}")/encoder.pth" phase="${model#phase}"
            if [[ "${model}" != *=* ]]; then
                source="$(pretrain_dir "${phase}" "${seed}")"
                need 6 $((phase + 3)) "${source}"
                source+="/latest.pth"
            fi
            options+=(--init_param "${source}:encoder:encoder")
            files+=(--input "${source}")
            ;;
    esac
    if [ "${fbank_stats}" = own ] && [[ "${model}" != *=beats:* ]]; then
        add_fbank_stats # they count more than the config's and the weights'
        options+=(--encoder_conf override_fbank_stats=true)
    fi
    options+=("${finetune_words[@]}")
    add_training "${name} ${model%%=*} seed ${seed}" "${dir}" "${command[@]}"
}

# best_model: the checkpoint of the best epoch on the validation set, in `dir`
best_model() {
    local measure measures=(mAP)
    if [ "${task}" = multi_class ]; then measures=(accuracy mAP); fi
    for measure in "${measures[@]}"; do
        if [ -e "${dir}/valid.${measure}.best.pth" ]; then
            echo "${dir}/valid.${measure}.best.pth"
            return 0
        fi
    done
    die "${dir} holds no valid.mAP.best.pth; best_model_criterion of the fine-tuning" \
        "config must hold [valid, mAP, max]"
}

# add_scoring: of for_each_finetuning, the last and the best model on all test sets
add_scoring() {
    local best test which options files
    need 7 6 "${dir}"
    best="$(best_model)"
    options=(--config "${dir}/config.yaml" --list "${audio_list},speech,${audio_type}"
        --checkpoint "last=${dir}/latest.pth" --checkpoint "best=${best}"
        --class_list "${classes}" --task "${task}")
    files=(--input "${dir}/config.yaml" "${dir}/latest.pth" "${best}")
    for test in ${tests//,/ }; do
        options+=(--test_dir "${dump}/${test}")
        files+=(--input "${dump}/${test}/${audio_list}" "${dump}/${test}/text")
        for which in last best; do
            files+=(--output "${dir}/${which}/${test##*/}"/{predictions.npz,metrics.json})
        done
    done
    launch "scoring of ${name} ${model%%=*} seed ${seed}" "${dir}/scoring/scoring.log" 1 \
        utils/score_model.py --output_dir "${dir}" "${options[@]}"
}
