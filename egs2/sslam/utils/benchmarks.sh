# shellcheck shell=bash disable=SC2154,SC2034
# The list of --downstream: run.sh again for each benchmark of conf/benchmarks.txt.

# benchmark <word>: sets `row` to the word's columns, fails for an unknown word
benchmark() {
    IFS='|' read -r -a row < <(awk -F ' *[|] *' -v OFS='|' -v word="$1" \
        '$1 == word { $1 = $1; print }' conf/benchmarks.txt)
}

check_benchmarks() {
    local word row words
    for word in ${protocol}; do
        case "${word}" in
            finetune | linear | mean | attentive | weighted | gated | prototypes) ;;
            *) die "--protocol holds finetune, linear, mean, attentive, weighted, gated," \
                "prototypes, not '${word}'" ;;
        esac
    done
    if [ -z "${downstream}" ]; then return 0; fi
    words="$(sed -e '/^#/d' -e 's/ .*//' conf/benchmarks.txt | paste -sd ' ')"
    for word in ${downstream}; do
        benchmark "${word}" || die "--downstream holds ${words}, not '${word}'"
    done
    [ "${stop_stage}" -le 7 ] || die "--downstream ends with stage 7, not ${stop_stage}"
    read -r -a words <<<"${downstream}"
    [ -z "${corpus_dir}" ] || [ "${#words[@]}" -eq 1 ] ||
        die "--corpus_dir is for one corpus: give those of several benchmarks in db.sh"
}

# benchmark_configs: the configs of `row` that --protocol asks for
benchmark_configs() {
    local word config configs=()
    for word in ${protocol}; do
        case "${word}" in
            finetune) config="${row[3]}" ;;
            linear) config="${row[4]}" ;;
            *) config="conf/probe_${word}.yaml" ;;
        esac
        if [ "${config}" != - ]; then configs+=("${config}"); fi
    done
    echo "${finetune_config:-${configs[*]}}"
}

# run_benchmark <word> <first stage> <last stage>: those that --stage and --stop_stage
# ask for. The benchmarks share the pre-training and the converted weights.
run_benchmark() {
    local word="$1" first=$((stage > $2 ? stage : $2)) configs row
    local last=$((stop_stage < $3 ? stop_stage : $3))
    if [ "${first}" -gt "${last}" ]; then return 0; fi
    benchmark "${word}"
    configs="$(benchmark_configs)"
    if [ -z "${configs}" ]; then
        log "${word}: has no config for --protocol '${protocol}', left out"
        return 0
    fi
    log "benchmark ${word}: stages ${first} to ${last}"
    # What is given here comes later and so counts.
    attend ./run.sh "${given[@]}" --downstream "" --python "${python}" \
        --corpus "${row[1]}" --data_args "${row[2]} ${data_args}" \
        --datadir "${datadir:-data}/${word}" --dumpdir "${dumpdir:-dump}/${word}" \
        --expdir "${exp}/${word}" --pretrain_from "${pretrain_from:-${exp}}" \
        --finetune_config "${configs}" --stage "${first}" --stop_stage "${last}"
}

# run_benchmarks: data of all, then pre-training on --corpus if its phases are asked
# for, then all evaluations. One that fails does not keep the others from running.
run_benchmarks() {
    local word failed=() tables=() exp="${expdir}"
    local phases=false
    if [ -n "$(pretrained_words)" ]; then phases=true; fi
    if "${phases}"; then : "${exp:=exp/${corpus}}"; else : "${exp:=exp/downstream}"; fi
    for word in ${downstream}; do
        run_benchmark "${word}" 1 3 || failed+=("${word}")
    done
    [ "${#failed[@]}" -eq 0 ] || die "no data of ${failed[*]}: see the lines above"
    if "${phases}" && [ -z "${pretrain_from}" ] &&
        [ "${stage}" -le 5 ] && [ "${stop_stage}" -ge 4 ]; then
        attend ./run.sh "${given[@]}" --downstream "" --python "${python}" --expdir "${exp}" \
            --stop_stage $((stop_stage < 5 ? stop_stage : 5)) ||
            die "the pre-training on ${corpus} did not end well: see the lines above"
    fi
    for word in ${downstream}; do
        run_benchmark "${word}" 6 7 || failed+=("${word}")
        if [ -e "${exp}/${word}/RESULTS.md" ]; then
            tables+=(--benchmark "${exp}/${word}" "${dumpdir:-dump}/${word}/${feats_type}")
        fi
    done
    [ "${#failed[@]}" -eq 0 ] || die "did not end well: ${failed[*]}; see the lines above"
    if ! runs 7 || [ "${#tables[@]}" -eq 0 ]; then return 0; fi
    attend "${python}" -m espnet2_sslam.bin.sslam_results "${tables[@]}" \
        --output "${exp}/BENCHMARKS.md"
}
