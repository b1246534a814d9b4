# shellcheck shell=bash disable=SC2154,SC2034
# The jobs of run.sh for one `config`: command lines of ESPnet's tools.

# asr_dir: where they go
asr_dir() {
    local tag
    tag="$(basename "${config}" .yaml)"
    if [ -n "${pretrained}" ] && [ -n "$(sslam_place)" ]; then tag+=_pretrained; fi
    echo "${expdir}/${tag}_seed${seed}"
}

# sslam_place: where SSLAM is in the config: encoder, frontend or nothing
sslam_place() { sed -n -E 's/^(encoder|frontend): *sslam\b.*/\1/p' "${config}"; }

# asr_options: sets `dir`, and `options` and `files` for asr_train
asr_options() {
    local place name
    dir="$(asr_dir)"
    options=(--config "${config}" --seed "${seed}" --token_type bpe
        --bpemodel "${tokens}/bpe.model" --token_list "${tokens}/tokens.txt")
    files=(--input "${config}" "${tokens}"/{bpe.model,tokens.txt})
    for name in train valid; do
        options+=(--"${name}"_data_path_and_name_and_type
            "${datadir}/${name}/wav.scp,speech,sound"
            --"${name}"_data_path_and_name_and_type
            "${datadir}/${name}/text,text,text")
        files+=(--input "${datadir}/${name}"/{utt2sha256,text})
    done
    place="$(sslam_place)"
    if [ -n "${pretrained}" ] && [ -n "${place}" ]; then
        options+=(--"${place}_conf" "pretrained=${pretrained}")
        # the source's own sizes
        for name in $("${python}" -c 'from espnet2_sslam.config import SIZES as s; print(*s)'); do
            options+=(--"${place}_conf" "${name}=null")
        done
        if [ -e "${pretrained}" ]; then files+=(--input "${pretrained}"); fi
    fi
    options+=("${asr_words[@]}")
}

add_statistics() {
    local options files dir name
    asr_options
    dir+=/stats
    files+=(--output "${dir}/train/speech_shape" "${dir}/valid/text_shape")
    for name in train valid; do # they say which utterances there are
        options+=(--"${name}_shape_file" "${datadir}/${name}/text")
    done
    launch "statistics for $(basename "${config}" .yaml)" "${dir}/stats.log" 1 \
        -m espnet2_sslam -m espnet2.bin.asr_train --collect_stats true \
        --output_dir "${dir}" "${options[@]}"
}

add_asr_training() {
    local options files dir name
    asr_options
    need 4 3 "${dir}/stats"
    for name in train valid; do
        options+=(--"${name}_shape_file" "${dir}/stats/${name}/speech_shape"
            --"${name}_shape_file" "${dir}/stats/${name}/text_shape")
        files+=(--input "${dir}/stats/${name}/speech_shape")
    done
    dir+=/model
    files+=(--output "${dir}/config.yaml" "${dir}/${inference_model}"
        --ask --replaced "${expdir}_replaced")
    launch "training of $(basename "${config}" .yaml)" "${dir}/train.log" \
        "${num_nodes}" -m espnet2_sslam -m espnet2.bin.asr_train --resume true \
        --output_dir "${dir}" "${options[@]}"
}

add_decoding() {
    local dir out set model wavs
    dir="$(asr_dir)"
    model="${dir}/model/${inference_model}"
    need 5 4 "${dir}/model"
    for set in test_known test_new; do
        out="${dir}/${set}" wavs="${datadir}/${set}/wav.scp"
        # ESPnet's launcher is for trainings: it adds options that decoding does not know
        add_job "${once[@]}" "decoding of ${set} by $(basename "${config}" .yaml)" \
            "${out}" "${asked[@]}" --log "${out}/decode.log" --output "${out}/1best_recog/text" \
            --input "${dir}/model/config.yaml" "${model}" "${wavs%/*}/utt2sha256" \
            -- "${launch_cmd}" --gpu "${ngpu}" "${out}/decode.log" \
            "${python}" -m espnet2_sslam -m espnet2.bin.asr_inference \
            --ngpu "${ngpu}" --asr_train_config "${dir}/model/config.yaml" \
            --asr_model_file "${model}" --output_dir "${out}" \
            --data_path_and_name_and_type "${wavs},speech,sound" "${inference_words[@]}"
    done
}
