# shellcheck shell=bash disable=SC2154
# Stage 9: which models are made ready for others, and where their folders go.

check_publish() {
    local words
    read -r -a words <<<"${publish}"
    [ "${#words[@]}" -ge 1 ] || die "--publish needs a word"
    [ -z "${hf_repo}" ] || [ "${#words[@]}" -eq 1 ] ||
        die "--hf_repo takes one model: give --publish one word, not '${publish}'"
    [ -z "${hf_repo}" ] || [[ "${hf_repo}" =~ ^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]+$ ]] ||
        die "--hf_repo is user/name, not '${hf_repo}'"
}

# published_model <word>: where the model of a word of --publish is
published_model() {
    if [[ "$1" =~ ^phase([12])(_seed([0-9]+))?$ ]]; then
        pretrain_dir "${BASH_REMATCH[1]}" "${BASH_REMATCH[3]:-${seeds%% *}}"
    elif [ -e "${expdir}/$1" ]; then
        echo "${expdir}/$1"
    else
        echo "$1" # weights from elsewhere
    fi
}

# publish_inputs <model>: sets `inputs` to the files that the folder is made from
publish_inputs() {
    local file
    inputs=()
    if [ -f "$1" ]; then inputs=(--input "$1"); fi
    for file in "$1"/{latest.pth,config.yaml,model.safetensors,config.json,scoring/.done} \
        "${expdir}"/results/scores.csv; do
        if [ -f "${file}" ]; then inputs+=(--input "${file}"); fi
    done
}

# publish_model <word>: write its folder, and upload it where --hf_repo says where to
publish_model() {
    local model dir name inputs publish_words hf_words
    model="$(published_model "$1")"
    case "$1" in
        phase1 | phase1_* ) need 9 4 "${model}" ;;
        phase2 | phase2_* ) need 9 5 "${model}" ;;
        *) if [ "${model}" = "${expdir}/$1" ] && [ -d "${model}" ]; then need 9 6 "${model}"; fi ;;
    esac
    name="${1%/}"
    if [ "${model}" = "$1" ]; then name="$(basename "${1%.pt}")"; fi
    name="sslam_${corpus}_$(tr -c 'A-Za-z0-9.\n-' _ <<<"${name}")"
    dir="${expdir}/publish/${name}"
    read -r -a publish_words <<<"${publish_args}"
    read -r -a hf_words <<<"${hf_args}"
    publish_inputs "${model}"
    once "folder ${name}" "${expdir}/publish/.records/${name}" "${inputs[@]}" \
        --output "${dir}/model.safetensors" --output "${dir}/config.json" \
        -- "${python}" -m espnet2_sslam.bin.sslam_publish "${model}" \
        --output "${dir}" "${publish_words[@]}"
    if [ -n "${hf_repo}" ]; then
        "${python}" -m espnet2_sslam.bin.sslam_publish "${dir}" \
            --hf_repo "${hf_repo}" "${hf_words[@]}"
    else
        log "look at ${dir}/README.md; --hf_repo user/name uploads the folder"
    fi
}
