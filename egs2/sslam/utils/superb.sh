# shellcheck shell=bash disable=SC2154
# Stage 8: which upstreams are compared, on which of s3prl's tasks.

check_superb() {
    local word
    [ "${stage}" -eq 8 ] || [ "${stop_stage}" -eq 8 ] || return 0
    [ -n "${superb_tasks}" ] ||
        die "stage 8 needs --superb_tasks, such as \"ks=DIR HearESC50=DIR\" with the" \
            "folders of the data"
    [ -n "${superb_upstreams}" ] || die "--superb_upstreams needs a word"
    for word in ${superb_tasks}; do
        [[ "${word}" = ?*=?* ]] || die "--superb_tasks holds TASK=DIR, not '${word}'"
        [ -d "${word#*=}" ] || die "--superb_tasks: there is no folder ${word#*=}"
    done
}

# superb_pretrained <word>: its model, {seed} for the seed; all of them must be there
superb_pretrained() {
    local seed
    for seed in ${seeds}; do need_pretrained 8 "$1" "${seed}"; done
    pretrain_dir "$1" "{seed}"
}

# superb_random: the model whose network `random` has: that of the phases, or of the
# first weights that are named
superb_random() {
    local word
    if ! [[ " ${superb_upstreams}" = *" phase"[12]* ]]; then
        for word in ${superb_upstreams}; do
            [[ "${word}" != ?*=?* ]] || { echo "${word#*=}" && return 0; }
        done
    fi
    superb_pretrained phase1
}

# run_superb: every upstream on every task, and the table
run_superb() {
    local word source words upstreams=() device=cpu
    for word in ${superb_upstreams}; do
        case "${word}" in
            random) source="$(superb_random)" || exit 1 ;;
            *)
                if ! is_pretrained "${word}"; then upstreams+=("${word}") && continue; fi
                check_word "${word}" || die "--superb_upstreams: there is no ${word}"
                source="$(superb_pretrained "${word}")" || exit 1
                ;;
        esac
        upstreams+=("${word//[:\/]/-}=${source}")
    done
    if [ "${ngpu}" -gt 0 ]; then device=cuda; fi
    split_words superb_args "${superb_args}"
    # shellcheck disable=SC2086 # lists of words
    attend "${python}" superb/sslam_superb.py --expdir "${expdir}/superb" \
        --output "${expdir}/SUPERB.md" --tasks ${superb_tasks} \
        --upstreams "${upstreams[@]}" --lrs ${superb_lrs} --seeds ${seeds} \
        --replace "${replace}" --keep "${keep}" --device "${device}" --nj "${at_once}" "${words[@]}"
}
