# shellcheck shell=bash disable=SC2154,SC2034
# What run.sh and asr/run.sh share: checks, and jobs that run at the same time. Their
# options are variables here.

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

# check_numbers <option ...>
check_numbers() {
    local option
    for option; do
        [[ "${!option}" =~ ^[0-9]+$ ]] ||
            die "--${option} is a whole number, not '${!option}'"
    done
    [ "${nj}" -ge 1 ] && [ "${num_nodes}" -ge 1 ] ||
        die "--nj and --num_nodes start at 1"
    [ "${stage}" -le "${stop_stage}" ] ||
        die "--stage ${stage} comes after --stop_stage ${stop_stage}"
}

# check_configs <YAML ...>
check_configs() {
    local config
    for config; do
        [ -f "${config}" ] || die "there is no config ${config} (in $(pwd))"
    done
}

# check_start <YAML ...>: the interpreter has what is needed, and the configs can be
# read; nothing has been written yet. Sets `once`, how work is started.
check_start() {
    local option words
    for option in replace keep verify; do
        [[ "${!option}" =~ ^(true|false)$ ]] ||
            die "--${option} is true or false, not '${!option}'"
    done
    "${replace}" && "${keep}" && die "--replace true and --keep true exclude each other"
    command -v "${python}" >/dev/null || die "--python: there is no ${python}"
    words="$("${python}" -c '
import importlib.util, sys
names = ("espnet2_sslam", "espnet2", "torch", "soundfile", "yaml")
lacking = [name for name in names if importlib.util.find_spec(name) is None]
if lacking:
    sys.exit("--python: it has no " + ", ".join(lacking))
from espnet2_sslam.store import read_yaml
for path in sys.argv[1:]:
    try:
        read_yaml(path)
    except ValueError as error:
        sys.exit(str(error))
' "$@" 2>&1)" || die "$(tail -n 1 <<<"${words:---python: ${python} does not run}")"
    once=("${python}" "${_recipe}/utils/once.py")
    asked=(--replace "${replace}" --keep "${keep}" --verify "${verify}")
}

# find_corpus <variable of db.sh>: sets `corpus_dir` if no option does
find_corpus() {
    : "${corpus_dir:=${!1:-}}"
    if ! runs 1; then return 0; fi
    [ -n "${corpus_dir}" ] || die "stage 1 needs --corpus_dir (or $1 in db.sh)"
    [ -e "${corpus_dir}" ] || die "there is no corpus in ${corpus_dir}"
}

# split_words <option> <its value>: sets `words`; quotes keep blanks, as in a shell
split_words() {
    local quoted
    words=()
    if [[ "$2" != *[\'\"\\$'\n']* ]]; then
        read -r -a words <<<"$2"
        return 0
    fi
    quoted="$("${python:-python3}" -c '
import shlex, sys
print(*map(shlex.quote, shlex.split(sys.argv[1])))
' "$2" 2>/dev/null)" || die "--$1 has a quote without its other half: $2"
    eval "words=(${quoted})"
}

# plan_jobs: sets how jobs are started, how many at a time and with how many threads
plan_jobs() {
    at_once="${nj}" launch_cmd="${train_cmd}"
    if [ "${ngpu}" -gt 0 ]; then
        launch_cmd="${cuda_cmd}"
        # The GPUs of this machine serve one training after the other.
        if [ "${cuda_cmd}" = run.pl ]; then at_once=1; fi
    fi
    local threads=$(($(nproc) / at_once))
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((threads > 1 ? threads : 1))}"
}

# Jobs are command lines; run_jobs <stage> runs those that were added.
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
    # xargs rather than `&`: bash keeps Ctrl-C from jobs in the background.
    # A training that a signal has stopped (status 85) lets xargs start no other job: it
    # does so after 255, and ends with 124.
    local status=0
    # shellcheck disable=SC2016 # expanded by the inner shell
    printf '%s\0' "${jobs[@]}" |
        xargs -0 -n 1 -P "${at_once}" bash -c \
            'eval "$1" || exit $(($? == 85 ? 255 : $?))' job ||
        status=$?
    if [ "${status}" -eq 124 ]; then
        log "stage $1: stopped by a signal: the same command goes on from there"
        exit 85
    fi
    [ "${status}" -eq 0 ] ||
        die "stage $1 did not end well: mend what the lines above name and run it again"
    jobs=()
}

# launch <name> <log> <nodes> <Python words>: a job that ESPnet's launcher starts, with
# `files`: what it reads and makes, as options of once.py
launch() {
    local name="$1" log="$2" dir="${2%/*}" nodes="$3"
    shift 3
    add_job "${once[@]}" "${name}" "${dir}" "${asked[@]}" --log "${log}" "${files[@]}" \
        -- "${python}" -m espnet2.bin.launch --cmd "${launch_cmd}" --log "${log}" \
        --ngpu "${ngpu}" --num_nodes "${nodes}" --init_file_prefix "${dir}/.dist_init_" \
        -- "${python}" "$@"
}
