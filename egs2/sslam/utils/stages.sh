# shellcheck shell=bash disable=SC2154,SC2034
# What run.sh and asr/run.sh share: checks, and jobs that run at the same time. Their
# options are variables here.

log() { printf '%s (run.sh) %s\n' "$(date '+%Y-%m-%dT%H:%M:%S')" "$*"; }

die() {
    echo "run.sh: $*" >&2
    exit 1
}

# attend <command ...>: run it, pass the signals that come on to it, and wait for its end.
# After a signal nothing else is begun: status 85, "all is kept, start me again".
child='' signalled='' stopped=''
attend() {
    local status
    "$@" <&0 &
    child=$!
    while :; do
        signalled='' status=0
        wait "${child}" || status=$?
        [ -n "${signalled}" ] || break # else it is only the wait that has ended
    done
    child=
    if [ -n "${stopped}" ] || [ "${status}" -eq 85 ]; then stop; fi
    return "${status}"
}
stop() {
    log "stopped by a signal: the same command goes on from there"
    exit 85
}
# A terminal's Ctrl-C reaches all processes by itself.
on_signal() {
    signalled=1 stopped=1
    if [ -z "${child}" ]; then stop; fi
    if [ "$1" != INT ]; then kill -s "$1" "${child}" 2>/dev/null || true; fi
}
for _signal in INT TERM HUP USR1; do
    # shellcheck disable=SC2064 # expanded now
    trap "on_signal ${_signal}" "${_signal}"
done

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
        die "--stage ${stage} comes after --stop_stage ${stop_stage}:" \
            "add --stop_stage ${stage}"
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
    sys.exit("--python: " + sys.executable + " has no " + ", ".join(lacking)
             + ": install the extra [recipe] there, or deactivate it: then an "
             "environment is made")
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

# check_machine: what the jobs need must be there before anything is begun
check_machine() {
    local gpus conf="conf/${cmd_backend}.conf"
    if [ "${cmd_backend}" = local ]; then
        [ "${num_nodes}" -eq 1 ] || die "--num_nodes ${num_nodes} needs" \
            "cmd_backend=slurm, queue or pbs (see cmd.sh): local jobs stay on this machine"
        [ "${ngpu}" -gt 0 ] || return 0
        gpus="$("${python}" -c 'import torch; print(torch.cuda.device_count())' \
            2>/dev/null)" || die "--ngpu ${ngpu}: ${python} cannot import torch"
        [ "${ngpu}" -le "${gpus}" ] || die "--ngpu ${ngpu}: PyTorch sees ${gpus} GPUs" \
            "here; --ngpu 0 trains on the CPU"
        return 0
    fi
    [ -n "${MAIN_ROOT:-}" ] || [ -n "$(type -P "${train_cmd}")" ] ||
        die "cmd_backend=${cmd_backend} needs ${train_cmd}: set MAIN_ROOT to a clone of" \
            "ESPnet or Kaldi that has it (see cmd.sh)"
    [ -n "$(type -P "${train_cmd}")" ] ||
        die "there is no ${train_cmd} in MAIN_ROOT=${MAIN_ROOT} (see cmd.sh)"
    [ -f "${conf}" ] || die "there is no $(pwd)/${conf} for ${train_cmd}"
    conf="$(sed -n 's/^command  *\([^ ]*\).*/\1/p' "${conf}")"
    [ -n "$(type -P "${conf}")" ] || die "cmd_backend=${cmd_backend}: there is no" \
        "${conf} here; start run.sh where jobs are submitted"
}

# plan_jobs: sets how jobs are started, how many at a time and with how many threads,
# and `array`: options of commands whose work on files becomes an array job
plan_jobs() {
    at_once="${nj}" launch_cmd="${train_cmd}" array=()
    if [ "${cmd_backend}" != local ]; then array=(--cmd "${train_cmd}"); fi
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
    attend jobs.py "${at_once}" < <(printf '%s\0' "${jobs[@]}") ||
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
