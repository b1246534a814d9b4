# shellcheck shell=bash disable=SC2154,SC2034
# The trainings of stages 4 to 6 and the scoring of stage 7: where they go, what they
# read, and their commands. The words of --models are random; the pre-trainings phase1,
# phase1_more (the same as phase2:unmixed), phase2, phase2:mixed, phase2:both and
# phase2:<YAML>; NAME=WEIGHTS for weights from elsewhere, and NAME=beats:FILE for BEATs.

# is_pretrained <word>: is it the model of a pre-training of stages 4 and 5?
is_pretrained() { [[ "$1" =~ ^(phase[12]|phase1_more|phase2:.+)$ ]]; }

# pretrained_words: the words of --models that are such models
pretrained_words() {
    local word
    for word in ${models}; do
        if is_pretrained "${word}"; then echo "${word}"; fi
    done
}

# phase2_words: what stage 5 trains: the words of --models that continue phase 1
phase2_words() { pretrained_words | grep -vx phase1 || echo phase2; }

# check_word <word of a pre-training>
check_word() {
    case "$1" in
        phase1 | phase1_more | phase2 | phase2:unmixed | phase2:mixed | phase2:both) ;;
        phase2:*.yaml | phase2:*.yml) check_configs "${1#phase2:}" ;;
        *) return 1 ;;
    esac
}

# check_models: also gives each word its one form, and sets `weights`, the words whose
# weights must be converted
check_models() {
    local word name names=" " words=()
    weights=()
    for word in ${models}; do
        name="${word%%=*}"
        case "${word}" in
            *=*)
                [[ -n "${word#*=}" && ! "${name}" =~ ^(random|phase[12])([_:-].*)?$ ]] ||
                    die "--models: '${word}' needs the form NAME=WEIGHTS with a new name"
                [[ "${name}" =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] ||
                    die "--models: the name '${name}' is not of letters, digits, . _ -"
                if [[ "${word}" != *=beats:* ]]; then
                    weights+=("${word}")
                elif [ ! -e "${word#*=beats:}" ]; then
                    die "--models: there is no file ${word#*=beats:}"
                fi
                ;;
            random) ;;
            *)
                check_word "${word}" || die "--models holds random, phase1," \
                    "phase1_more, phase2, phase2:unmixed, phase2:mixed, phase2:both," \
                    "phase2:<YAML>, NAME=WEIGHTS, not '${word}'"
                if [ "${word}" = phase2:unmixed ]; then word=phase1_more; fi
                name="$(run_name "${word}" 1)"
                ;;
        esac
        if [[ "${names}" = *" ${name} "* ]]; then
            die "--models holds ${word%%=*} twice"
        fi
        names+="${name} "
        words+=("${word}")
    done
    models="${words[*]}"
}

# tag_of <config> <prefix to drop> <args>: the name of a config and its extra options,
# cut with a hash behind it where it is too long for the name of a file
tag_of() {
    local tag
    tag="$(basename "$1" .yaml)"
    tag="${tag#"$2"}$(sed -e 's/--/_/g' -e 's/[^A-Za-z0-9_.-]//g' <<<"$3")"
    if [ "${#tag}" -gt 80 ]; then
        tag="${tag:0:70}_$(short_hash <<<"${tag}")"
    fi
    if [ "${feats_type}" = fbank ]; then tag+="_fbank"; fi
    echo "${tag}"
}

# pretrain_config_of <word>, pretrain_args_of <word>: of a pre-training
pretrain_config_of() {
    case "$1" in
        phase1) echo "${pretrain_config}" ;;
        phase2:*.y*ml) echo "${1#phase2:}" ;;
        *) echo "${pretrain2_config}" ;;
    esac
}
pretrain_args_of() {
    if [ "$1" = phase1 ]; then
        echo "${pretrain_args} ${pretrain1_args}"
    else
        echo "${pretrain_args} ${pretrain2_args}"
    fi
}

# short_hash: eight digits that tell apart what is read from stdin
short_hash() { sha256sum | cut -c 1-8; }

# weights_name <weights>: what a file, folder or id is called in the names of runs: its
# own name, and a hash of where it lies, as others may have that name elsewhere
weights_name() {
    local name place="$1"
    if [ -e "$1" ] || [[ ! "$1" =~ ^[A-Za-z0-9][^/{}]*/[^/{}]+$ ]]; then
        place="$(realpath -m "$1")" # no Hugging Face id
    fi
    name="$(basename "$1")"
    if [[ "${name}" =~ ^(latest|model|[0-9]+epoch)[.] ]]; then
        name="$(basename "$(dirname "$(realpath -m "$1")")")" # the training's folder
    fi
    sed -E -e 's/_?(seed)?[{]seed[}]//' -e 's/[.](pt|pth|safetensors|zip)$//' \
        -e 's/[^A-Za-z0-9_.-]+/_/g' -e "s/$/_$(short_hash <<<"${place}")/" <<<"${name}"
}

# pretrain_tag_of <word>: the name of a pre-training's settings. That of phase 2 names
# phase 1's too, unless both go together as eat_tiny and sslam_tiny do.
pretrain_tag_of() {
    local tag="${pretrain_tag}" first usual
    first="${tag:-$(config_tag phase1)}"
    if [ -n "${phase1}" ]; then first="$(weights_name "${phase1}")"; fi
    if [ "$1" = phase1 ]; then
        echo "${first}"
    elif [ -z "${tag}" ]; then
        tag="$(config_tag "$1")"
        usual="$(tag_of "${pretrain2_config}" pretrain_ "${pretrain_args}")"
        if [ -n "${phase1}" ] || [ "${first/eat/sslam}" != "${usual}" ]; then
            tag+="_from_${first}"
        fi
        echo "${tag}"
    elif [[ "$1" = *.y*ml ]]; then
        echo "${tag}_$(config_tag "$1")"
    else
        echo "${tag}"
    fi
}

# config_tag <word>: that of phase2:<YAML> holds a hash of the file, as --pretrain2_config
# or another YAML may have its name
config_tag() {
    local tag
    tag="$(tag_of "$(pretrain_config_of "$1")" pretrain_ "$(pretrain_args_of "$1")")"
    if [[ "$1" = *.y*ml ]]; then tag+="_$(short_hash <"${1#phase2:}")"; fi
    echo "${tag}"
}

# pretrain_dir <word> <seed>: where a pre-training lies, or the weights of --phase1
pretrain_dir() {
    local own=""
    if [ "$1" = phase1 ] && [ -n "${phase1}" ]; then
        if [[ "${phase1}" = *"{seed}"* ]]; then own="_seed$2"; fi
        echo "${pretrain_from}/models/phase1_$(pretrain_tag_of phase1)${own}"
    else
        echo "${pretrain_from}/pretrain/$(run_name "$1" "$2")"
    fi
}

# run_name <word> <seed>: the folder of a pre-training, and of its fine-tunings
run_name() {
    local kind="${1%%=*}" tag=""
    case "$1" in
        *=*) ;;
        random) tag="$(random_tag)" ;;
        *)
            tag="$(pretrain_tag_of "$1")"
            if [[ "$1" = *.y*ml ]]; then kind=phase2; fi
            kind="${kind//[:_]/-}"
            ;;
    esac
    echo "${kind}${tag:+_${tag}}_seed$2"
}

# random_tag: what an untrained encoder has its size from: phase 1 or, where no
# pre-training is asked for, the first weights that are named
random_tag() {
    if [ "${#weights[@]}" -gt 0 ] && [ -z "$(pretrained_words)" ]; then
        echo "${weights[0]%%=*}"
    else
        pretrain_tag_of phase1
    fi
}

# need_pretrained <stage> <word> <seed>: a pre-training must have ended well
need_pretrained() {
    local earlier=5
    if [ "$2" = phase1 ] && [ -z "${phase1}" ]; then earlier=4; fi
    need "$1" "${earlier}" "$(pretrain_dir "$2" "$3")"
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

# expected_runs: every <tag>/<run> that stage 7 scores
expected_runs() {
    local config model seed
    for config in ${finetune_config}; do
        for seed in ${seeds}; do
            for model in ${models}; do
                echo "$(finetune_tag_of "${config}")/$(run_name "${model}" "${seed}")"
            done
        done
    done
}

# weights_dir <word>: where the weights of NAME=WEIGHTS lie once they are converted
weights_dir() { echo "${pretrain_from}/models/${1%%=*}"; }

# convert <name> <source> <dir> <file> [option]: weights from elsewhere as a file of
# ours, with config.yaml
convert() {
    local input=()
    if [ -e "$2" ]; then input=(--input "$2"); fi
    attend "${once[@]}" "weights $1" "$3" "${asked[@]}" --replaced "${pretrain_from}_replaced" \
        "${input[@]}" --output "$3/$4" "$3/config.yaml" \
        -- "${python}" utils/convert_weights.py "$2" "$3" "${@:5}"
}

# convert_weights: encoder.pth and config.yaml of every NAME=WEIGHTS
convert_weights() {
    local word
    for word in "${weights[@]}"; do
        convert "${word%%=*}" "${word#*=}" "$(weights_dir "${word}")" encoder.pth
    done
}

# convert_phase1: latest.pth and config.yaml of what --phase1 names ({seed}: each seed's)
convert_phase1() {
    local seed dir
    if [ -z "${phase1}" ]; then return 0; fi
    for seed in ${seeds}; do
        dir="$(pretrain_dir phase1 "${seed}")"
        convert phase1 "${phase1//"{seed}"/"${seed}"}" "${dir}" latest.pth --phase1
        log "phase 1 is ${phase1//"{seed}"/"${seed}"}:" \
            "$(sed -n 's/^# //p' "${dir}/config.yaml")"
        if [[ "${phase1}" != *"{seed}"* ]]; then break; fi
    done
}

# encoder_options <config.yaml>: sizes, mean and spread of converted weights as options
encoder_options() {
    local words
    read -r -a words < <("${python}" -c '
import sys, yaml
conf = yaml.safe_load(open(sys.argv[1], encoding="utf-8"))["encoder_conf"]
print(*(f"--encoder_conf {key}={value}" for key, value in conf.items()))
' "$1")
    options+=("${words[@]}")
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
    options=(--config "$1" --seed "${seed}" --input_size "${input_size}" --resume true
        --keep "${keep}")
    files=(--input "$1")
}

# report_inputs: sets `files`, all lists of the dump but those that say where clips lie
report_inputs() {
    local file skipped=(-path ./audio)
    for file in feats cut report records.jsonl; do skipped+=(-o -path "./${file}"); done
    skipped+=(-o -name wav.scp -o -name feats.scp -o -name ".?*")
    files=()
    while IFS= read -r file; do
        files+=(--input "${dump}/${file#./}")
    done < <(cd "${dump}" && find . \( "${skipped[@]}" \) -prune -o -type f -print | sort)
}

# content_of <split>: the file that says what its clips are. Lists made by hand may have
# none but the list itself.
content_of() {
    if [ -e "$1/utt2sha256" ]; then echo "$1/utt2sha256"; else echo "$1/${audio_list}"; fi
}

# add_data <train|valid> <dir> [text]: the audio of a split, and its labels if asked for
add_data() {
    local data="--$1_data_path_and_name_and_type"
    options+=("${data}" "$2/${audio_list},speech,${audio_type}")
    with_input "--$1_shape_file" "$2/${shape_file}"
    files+=(--input "$(content_of "$2")")
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
        --ask --replaced "${expdir}_replaced")
    launch "${name}" "${dir}/train.log" "${num_nodes}" "$@" \
        --output_dir "${dir}" "${options[@]}"
}

# start_from_phase1: of phase 2. The learning continues, the count of updates starts
# anew; what weights from elsewhere lack starts fresh.
start_from_phase1() {
    local source init
    source="$(pretrain_dir phase1 "${seed}")"
    need_pretrained 5 phase1 "${seed}"
    init=("${source}/latest.pth:::num_updates")
    if [ -n "${phase1}" ]; then
        init=("${source}/latest.pth:encoder:encoder")
        if grep -q '^fresh:.*teacher' "${source}/config.yaml"; then
            init+=("${source}/latest.pth:encoder:teacher.encoder") # a copy
        else
            init+=("${source}/latest.pth:teacher.encoder:teacher.encoder")
        fi
        if ! grep -q '^fresh:.*decoder' "${source}/config.yaml"; then
            init+=("${source}/latest.pth:decoder:decoder")
        fi
    fi
    options+=(--init_param "${init[@]}")
    files+=(--input "${source}/latest.pth")
}

# add_pretraining <word> <seed>
add_pretraining() {
    local word="$1" seed="$2" options files words
    start_options "$(pretrain_config_of "${word}")"
    if [ "${word}" != phase1 ]; then start_from_phase1; fi
    add_data train "${dump}/pretrain/train"
    add_data valid "${dump}/pretrain/valid"
    if [ -n "${phase1}" ]; then
        encoder_options "$(pretrain_dir phase1 "${seed}")/config.yaml"
    else
        add_fbank_stats
    fi
    split_words pretrain_args "$(pretrain_args_of "${word}")"
    options+=("${words[@]}")
    case "${word}" in
        phase1_more) options+=(--variant unmixed) ;;
        phase2:mixed | phase2:both) options+=(--variant "${word#*:}") ;;
    esac
    add_training "${word/#phase/phase } seed ${seed}" \
        "$(pretrain_dir "${word}" "${seed}")" -m espnet2_sslam.bin.sslam_train
}

# for_each_finetuning <function>: call it for every run of stages 6 and 7, with `dir`,
# `config`, `model`, `seed`, a line of downstream.txt and `classes` set
for_each_finetuning() {
    local dir config model seed name task train valid tests classes tag run
    for config in ${finetune_config}; do
        tag="$(finetune_tag_of "${config}")"
        for seed in ${seeds}; do
            for model in ${models}; do
                run="$(run_name "${model}" "${seed}")"
                while read -r name task train valid tests; do
                    dir="${expdir}/${tag}/${run}/${name//\//_}"
                    classes="${dump}/${train%%/*}/classes.txt"
                    "$1"
                done <"${dump}/downstream.txt"
            done
        done
    done
}

# random_encoder: an untrained encoder, of the size that `random_tag` names
random_encoder() {
    local trained
    trained="$(pretrain_dir phase1 "${seed}")"
    if [ "${#weights[@]}" -gt 0 ] && [ -z "$(pretrained_words)" ]; then
        trained="$(weights_dir "${weights[0]}")"
    fi
    if [ -e "${trained}/.done" ]; then
        with_input --encoder_config "${trained}/config.yaml"
    else
        with_input --encoder_config "${pretrain_config}"
        add_fbank_stats
    fi
    files+=(--section "${files[-1]}" encoder_conf)
}

# add_finetuning: of for_each_finetuning
add_finetuning() {
    local options files source words command=(-m espnet2_sslam.bin.sslam_cls_train)
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
            source="$(weights_dir "${model}")/encoder.pth"
            if is_pretrained "${model}"; then
                need_pretrained 6 "${model}" "${seed}"
                source="$(pretrain_dir "${model}" "${seed}")/latest.pth"
            fi
            options+=(--init_param "${source}:encoder:encoder")
            files+=(--input "${source}")
            ;;
    esac
    if [ "${fbank_stats}" = own ] && [[ "${model}" != *=beats:* ]]; then
        add_fbank_stats # they count more than the config's and the weights'
        options+=(--encoder_conf override_fbank_stats=true)
    fi
    split_words finetune_args "${finetune_args}"
    options+=("${words[@]}")
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
    files=(--input "${dir}/config.yaml" "${dir}/latest.pth" "${best}" "${classes}")
    for test in ${tests//,/ }; do
        options+=(--test_dir "${dump}/${test}")
        files+=(--input "$(content_of "${dump}/${test}")" "${dump}/${test}/text")
        for which in last best; do
            files+=(--output "${dir}/${which}/${test##*/}"/{predictions.npz,metrics.json})
        done
    done
    launch "scoring of ${name} ${model%%=*} seed ${seed}" "${dir}/scoring/scoring.log" 1 \
        utils/score_model.py --output_dir "${dir}" "${options[@]}"
}
