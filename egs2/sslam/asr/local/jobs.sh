# shellcheck shell=bash disable=SC2154,SC2034
# The jobs of run.sh: command lines of ESPnet's tools. Its options are variables here.

TEST_SETS=(test_known test_new)

check_asr_options() {
    local option config
    for option in stage stop_stage ngpu num_nodes nj seed num_train num_test nbpe; do
        [[ "${!option}" =~ ^[0-9]+$ ]] ||
            die "--${option} is a whole number, not '${!option}'"
    done
    [ "${nj}" -ge 1 ] && [ "${num_nodes}" -ge 1 ] ||
        die "--nj and --num_nodes start at 1"
    [ "${stage}" -le "${stop_stage}" ] ||
        die "--stage ${stage} comes after --stop_stage ${stop_stage}"
    for config in ${asr_configs}; do
        [ -f "${config}" ] || die "there is no config ${config} (in $(pwd))"
    done
    [ -n "${asr_configs}" ] || die "--asr_configs needs a file"
    : "${corpus_dir:=${FSDD:-}}"
    if runs 1; then
        [ -n "${corpus_dir}" ] || die "--corpus_dir is needed (or a line in ../db.sh)"
        [ -d "${corpus_dir}" ] || die "there is no corpus in ${corpus_dir}"
    fi
}

set_asr_defaults() {
    tokens="${datadir}/tokens"
    read -r -a asr_words <<<"${asr_args}"
    read -r -a inference_words <<<"${inference_args}"
    at_once="${nj}" launch_cmd="${train_cmd}"
    if [ "${ngpu}" -gt 0 ]; then launch_cmd="${cuda_cmd}"; fi
    if [ "${ngpu}" -gt 0 ] && [ "${cuda_cmd}" = run.pl ]; then at_once=1; fi
    local threads=$(($(nproc) / at_once))
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((threads > 1 ? threads : 1))}"
}

# asr_dir <config>
asr_dir() {
    local tag
    tag="$(basename "$1" .yaml)"
    if [ -n "${pretrained}" ] && [ -n "$(sslam_in "$1")" ]; then tag+=_pretrained; fi
    echo "${expdir}/${tag}_seed${seed}"
}

# sslam_in <config>: where SSLAM is in it: encoder, frontend or nothing
sslam_in() { sed -n -E 's/^(encoder|frontend): *sslam\b.*/\1/p' "$1"; }

# asr_options <config>: sets `options` and `inputs` for asr_train
asr_options() {
    local place name
    options=(--config "$1" --seed "${seed}" --token_type bpe
        --bpemodel "${tokens}/bpe.model" --token_list "${tokens}/tokens.txt")
    inputs=(--input "$1" --input "${tokens}/bpe.model" --input "${tokens}/tokens.txt")
    for name in train valid; do
        options+=(--"${name}"_data_path_and_name_and_type
            "${datadir}/${name}/wav.scp,speech,sound"
            --"${name}"_data_path_and_name_and_type
            "${datadir}/${name}/text,text,text")
        inputs+=(--input "${datadir}/${name}/wav.scp" --input "${datadir}/${name}/text")
    done
    place="$(sslam_in "$1")"
    if [ -n "${pretrained}" ] && [ -n "${place}" ]; then
        options+=(--"${place}_conf" "pretrained=${pretrained}")
        # the source's own sizes
        for name in $("${python}" -c 'from espnet2_sslam.config import SIZES as s; print(*s)'); do
            options+=(--"${place}_conf" "${name}=null")
        done
        if [ -e "${pretrained}" ]; then inputs+=(--input "${pretrained}"); fi
    fi
    options+=("${asr_words[@]}")
}

# add_statistics <config>
add_statistics() {
    local options inputs dir name
    dir="$(asr_dir "$1")/stats"
    asr_options "$1"
    inputs+=(--output "${dir}/train/speech_shape" --output "${dir}/valid/text_shape")
    for name in train valid; do # they say which utterances there are
        options+=(--"${name}_shape_file" "${datadir}/${name}/text")
    done
    launch "statistics for $(basename "$1" .yaml)" "${dir}" "${dir}/stats.log" 1 \
        -m espnet2_sslam -m espnet2.bin.asr_train --collect_stats true \
        --output_dir "${dir}" "${options[@]}"
}

# add_asr_training <config>
add_asr_training() {
    local options inputs dir
    dir="$(asr_dir "$1")"
    need 4 3 "${dir}/stats"
    asr_options "$1"
    for name in train valid; do
        options+=(--"${name}_shape_file" "${dir}/stats/${name}/speech_shape"
            --"${name}_shape_file" "${dir}/stats/${name}/text_shape")
        inputs+=(--input "${dir}/stats/${name}/speech_shape")
    done
    inputs+=(--output "${dir}/model/config.yaml"
        --output "${dir}/model/${inference_model}" --replaced "${expdir}_replaced")
    launch "training of $(basename "$1" .yaml)" "${dir}/model" "${dir}/model/train.log" \
        "${num_nodes}" -m espnet2_sslam -m espnet2.bin.asr_train --resume true \
        --output_dir "${dir}/model" "${options[@]}"
}

# add_decoding <config>
add_decoding() {
    local inputs dir out set model
    dir="$(asr_dir "$1")"
    need 5 4 "${dir}/model"
    model="${dir}/model/${inference_model}"
    for set in "${TEST_SETS[@]}"; do
        out="${dir}/${set}"
        inputs=(--input "${dir}/model/config.yaml" --input "${model}"
            --input "${datadir}/${set}/wav.scp" --output "${out}/1best_recog/text")
        # ESPnet's launcher is for trainings: it adds options that decoding does not know
        add_job once.py --name "decoding of ${set} by $(basename "$1" .yaml)" \
            --dir "${out}" --log "${out}/decode.log" "${inputs[@]}" \
            -- "${launch_cmd}" --gpu "${ngpu}" "${out}/decode.log" \
            "${python}" -m espnet2_sslam -m espnet2.bin.asr_inference \
            --ngpu "${ngpu}" --asr_train_config "${dir}/model/config.yaml" \
            --asr_model_file "${model}" --output_dir "${out}" \
            --data_path_and_name_and_type "${datadir}/${set}/wav.scp,speech,sound" \
            "${inference_words[@]}"
    done
}
