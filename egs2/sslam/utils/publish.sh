# shellcheck shell=bash disable=SC2154
# Stage 9: which models are made ready for others, and where their folders go.

check_publish() {
    local words
    read -r -a words <<<"${publish}"
    [ "${#words[@]}" -ge 1 ] || die "--publish needs a word"
    if [ -z "${hf_repo}" ]; then return 0; fi
    [ "${#words[@]}" -eq 1 ] ||
        die "--hf_repo takes one model: give --publish one word, not '${publish}'"
    [[ "${hf_repo}" =~ ^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]+$ ]] ||
        die "--hf_repo is user/name, not '${hf_repo}'"
}

# publish_model <phase1, phase2_seed3, a run below expdir, or weights from elsewhere>:
# write its folder, and upload it where --hf_repo says where to
publish_model() {
    local model="$1" name="${1%/}" dir file files=() words
    local word="${1%_seed*}" seed="${seeds%% *}"
    if is_pretrained "${word}" && check_word "${word}"; then
        if [ "${word}" != "$1" ]; then seed="${1##*_seed}"; fi
        model="$(pretrain_dir "${word}" "${seed}")"
        need_pretrained 9 "${word}" "${seed}"
    elif [ -e "${expdir}/$1" ]; then
        model="${expdir}/$1"
        if [ -d "${model}" ]; then need 9 6 "${model}"; fi
    else
        name="$(basename "${1%.pt}")"
    fi
    name="sslam_${corpus}_$(tr -c 'A-Za-z0-9.\n-' _ <<<"${name}")"
    dir="${expdir}/publish/${name}"
    for file in "${model}" "${expdir}/results/scores.csv" \
        "${model}"/{latest.pth,config.yaml,model.safetensors,config.json,scoring/.done}; do
        if [ -f "${file}" ]; then files+=(--input "${file}"); fi
    done
    split_words publish_args "${publish_args}"
    attend "${once[@]}" "folder ${name}" "${expdir}/publish/.records/${name}" \
        "${asked[@]}" "${files[@]}" --output "${dir}/model.safetensors" "${dir}/config.json" \
        -- "${python}" -m espnet2_sslam.bin.sslam_publish "${model}" \
        --output "${dir}" "${words[@]}"
    if [ -n "${hf_repo}" ]; then
        split_words hf_args "${hf_args}"
        "${python}" -m espnet2_sslam.bin.sslam_publish "${dir}" \
            --hf_repo "${hf_repo}" "${words[@]}"
    else
        log "look at ${dir}/README.md; --hf_repo user/name uploads the folder"
    fi
}
