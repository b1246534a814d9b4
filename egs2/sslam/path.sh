# shellcheck shell=bash
# Puts the project, its environment and the runners on the search paths.
#
# With `python` set before (run.sh --python), that interpreter is used as it is. In an
# activated environment that has the project (pip install -e .), that one is used.
# Otherwise tools/setup_env.sh finds or builds the project's own, but never in a job of
# slurm.pl, queue.pl or pbs.pl. Such a job gets nothing but PATH, which run.sh has set as here;
# with --python its command names the interpreter itself.

_recipe="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
_root="$(cd "${_recipe}/../.." && pwd -P)"

_has_project() {
    [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && python3 -c \
        'from importlib.metadata import version; version("espnet2_sslam")' 2>/dev/null
}

if [[ ":${PATH}:" = *":${_recipe}/utils:"* ]] ||
    { [ -z "${stage+set}" ] && [ -n "${SLURM_JOB_ID:-}${JOB_ID:-}${PBS_JOBID:-}" ]; }; then
    : "${python:=python3}" # `stage` is run.sh's, which may itself be a scheduler's job
fi
if [ -z "${python:-}" ]; then
    if ! _has_project; then
        if [ ! -e "${_root}/tools/setup_env.sh" ]; then # written by `sslam recipe`
            echo "error: activate the environment that has sslam, or give --python PY" >&2
            exit 1
        fi
        _env="$("${_root}/tools/setup_env.sh")" || exit 1
        PATH="${_env}/bin:${PATH}"
    fi
    python=python3
fi

PATH="${_recipe}/utils:${PATH}"
if [ -n "${MAIN_ROOT:-}" ]; then
    # An ESPnet clone keeps its runners in utils/, or in Kaldi's once it is linked. The
    # last one that is there comes first.
    for _utils in egs/wsj/s5/utils{/parallel,} tools/kaldi/egs/wsj/s5/utils \
        egs2/TEMPLATE/asr1/utils utils; do
        if [ -d "${MAIN_ROOT}/${_utils}" ]; then PATH="${MAIN_ROOT}/${_utils}:${PATH}"; fi
    done
fi
export PATH
export PYTHONPATH="${_root}${PYTHONPATH:+:${PYTHONPATH}}"
export PYTHONIOENCODING=UTF-8
# Large tensors stay in the heap: without it each one costs fresh page faults on a CPU
# (benchmarks/step.py).
export MALLOC_MMAP_THRESHOLD_=34359738368 MALLOC_TRIM_THRESHOLD_=34359738368
