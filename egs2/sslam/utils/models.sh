# shellcheck shell=bash disable=SC2154,SC2034
# The words of --models: random, phase1, phase2, NAME=WEIGHTS for weights that were
# trained elsewhere, or NAME=beats:FILE for BEATs.

check_models() {
    local word name names=" "
    for word in ${models}; do
        name="${word%%=*}"
        case "${word}" in
            random | phase1 | phase2) ;;
            random=* | phase1=* | phase2=* | *=)
                die "--models: '${word}' needs the form NAME=WEIGHTS with a new name" ;;
            *=*)
                [[ "${name}" =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] ||
                    die "--models: the name '${name}' is not of letters, digits, . _ -"
                ;;
            *) die "--models holds random, phase1, phase2, NAME=WEIGHTS, not '${word}'" ;;
        esac
        case "${names}" in
            *" ${name} "*) die "--models holds ${name} twice" ;;
        esac
        names+="${name} "
    done
}

# model_names: those of --models without the weights
model_names() {
    local word
    for word in ${models}; do echo "${word%%=*}"; done
}

# weights_dir <name>: where the weights NAME=WEIGHTS lie once they are converted
weights_dir() { echo "${pretrain_from}/models/$1"; }

# convert_models: encoder.pth and config.yaml of every NAME=WEIGHTS
convert_models() {
    local word name source dir input
    for word in ${models}; do
        if [[ "${word}" != *=* || "${word}" = *=beats:* ]]; then continue; fi
        name="${word%%=*}" source="${word#*=}" input=()
        if [ -e "${source}" ]; then input=(--input "${source}"); fi
        dir="$(weights_dir "${name}")"
        once "weights ${name}" "${dir}" --replaced "${pretrain_from}_replaced" \
            "${input[@]}" --output "${dir}/encoder.pth" --output "${dir}/config.yaml" \
            -- "${python}" utils/convert_weights.py "${source}" "${dir}"
    done
}

# random_encoder <seed>: options for an encoder that is not trained, of the size of
# phase 1's; or, where no phase is asked for, of the first weights that are named
random_encoder() {
    local trained stats word
    trained="$(pretrain_dir 1 "$1")"
    if ! [[ " ${models}" = *" phase"[12]* ]]; then
        for word in ${models}; do
            if [[ "${word}" = *=* && "${word}" != *=beats:* ]]; then
                trained="$(weights_dir "${word%%=*}")"
                break
            fi
        done
    fi
    if [ -e "${trained}/.done" ]; then
        options+=(--encoder_config "${trained}/config.yaml")
        inputs+=(--input "${trained}/config.yaml")
    else
        read -r -d '' -a stats < <(fbank_stats) || true
        options+=(--encoder_config "${pretrain_config}" "${stats[@]}")
        inputs+=(--input "${pretrain_config}")
    fi
}

# trainer <model>: the command that fine-tunes it
trainer() {
    if [[ "$1" = *=beats:* ]]; then
        echo beats/beats_cls_train.py
    else
        echo sslam_cls_train
    fi
}

# pretrained_encoder <model> <seed>: options for the weights of a phase or a name
pretrained_encoder() {
    local source weights=latest.pth
    if [[ "$1" = *=beats:* ]]; then
        options+=(--beats_checkpoint "${1#*=beats:}")
        inputs+=(--input "${1#*=beats:}")
        return 0
    fi
    if [[ "$1" = *=* ]]; then
        source="$(weights_dir "${1%%=*}")" weights=encoder.pth
    else
        source="$(pretrain_dir "${1#phase}" "$2")"
        need 6 $((${1#phase} + 3)) "${source}"
    fi
    options+=(--init_param "${source}/${weights}:encoder:encoder")
    inputs+=(--input "${source}/${weights}")
}
