#!/usr/bin/env bash
# Build, repair or just find the Python environment of the project.
set -euo pipefail

usage() {
    cat <<'EOF'
Usage: tools/setup_env.sh [--stack STACK] [--python PY] [--env DIR] [--help]

Makes a virtual environment with the project and everything it needs (2 to 5 minutes,
6 to 8 GB; a second run takes a second) and prints its directory on the last line.

  --stack STACK full: all hosts, in the versions of constraints/py3.X.txt (default);
                light: the core, PyAV and its tests, no host, torch of the day;
                newest: all hosts, in the newest versions that setup.py allows
  --python PY   a Python command, or a version such as 3.11
                (default: $PYTHON, else the newest that runs: 3.12, 3.11, 3.13)
  --env DIR     the environment's directory
                (default: $SSLAM_ENV_DIR/py3.X, else <checkout>/.venv/py3.X; of another
                stack light-py3.X or newest-py3.X)
EOF
}

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
asked="${PYTHON:-}"
env=""
stack=full

die() {
    echo "setup_env.sh: $*" >&2
    exit 1
}
say() { echo "setup_env.sh: $*" >&2; }

while [ $# -gt 0 ]; do
    case "$1" in
        --python | --env | --stack)
            [ $# -ge 2 ] || die "$1 needs a value"
            case "$1" in
                --python) asked="$2" ;;
                --env) env="$2" ;;
                --stack) stack="$2" ;;
            esac
            shift 2
            ;;
        -h | --help) usage && exit 0 ;;
        *) die "unknown option $1; --help lists the options" ;;
    esac
done

modules="torch numpy soundfile pytest"
case "${stack}" in
    full | newest)
        extras=test-hosts,lint,docs
        modules="${modules} torchaudio espnet2 s3prl scipy sklearn transformers"
        ;;
    light) extras="test,av" ;;
    *) die "no stack ${stack}; it is full, light or newest" ;;
esac

# Print the minor version (3.12) of a Python that really runs and can make environments.
# A pyenv shim without its version, or a Python without venv, does not count.
minor_of() {
    "$1" -I -c 'import ensurepip, venv, sys; print("%d.%d" % sys.version_info[:2])' \
        2>/dev/null
}

# Print a Python of exactly this minor version, and fail if there is none.
find_minor() {
    local candidate
    for candidate in "python$1" python3 python "${HOME}"/.pyenv/versions/"$1".*/bin/python; do
        candidate="$(command -v "${candidate}")" || continue
        if [ "$(minor_of "${candidate}")" = "$1" ]; then
            echo "${candidate}"
            return 0
        fi
    done
    return 1
}

find_python() {
    local minor
    case "${asked}" in
        "")
            for minor in 3.12 3.11 3.13; do
                if find_minor "${minor}"; then return 0; fi
            done
            die "no Python 3.12 or 3.11 (with venv) that runs; install one or set PYTHON"
            ;;
        3.1[123]) find_minor "${asked}" || die "no Python ${asked} (with venv) that runs" ;;
        *)
            minor="$(minor_of "${asked}")" ||
                die "${asked} does not run, or has no venv; set PYTHON to one that does"
            case "${minor}" in
                3.1[123]) command -v "${asked}" ;;
                *) die "${asked} is Python ${minor}; 3.12, 3.11 or 3.13 is needed" ;;
            esac
            ;;
    esac
}

python="$(find_python)"
minor="$(minor_of "${python}")"
name="py${minor}"
if [ "${stack}" != full ]; then name="${stack}-${name}"; fi
: "${env:=${SSLAM_ENV_DIR:-${root}/.venv}/${name}}"
constraints=()
if [ "${stack}" = full ] && [ -e "${root}/constraints/py${minor}.txt" ]; then
    constraints=(-c "${root}/constraints/py${minor}.txt")
fi
mkdir -p "$(dirname "${env}")"
env="$(cd "$(dirname "${env}")" && pwd -P)/$(basename "${env}")"
stamp="${env}/sslam.stamp"
log="${env}.log"

# What a valid environment was made from: the requirements and the interpreter.
fingerprint() {
    {
        "${python}" -I -c 'import sys; print(sys.version, sys.base_prefix)'
        cat "${root}/setup.py" "${constraints[@]:1}"
    } | sha256sum | cut -d' ' -f1
}

# Look, without importing them (seconds), whether all required packages are there.
has_packages() {
    [ -x "${env}/bin/python" ] || return 1
    "${env}/bin/python" -I - "${extras}" "${modules}" <<'EOF' 2>>"${log}"
import sys
from importlib.metadata import requires, version
from importlib.util import find_spec

from packaging.requirements import Requirement

for line in requires("espnet2_sslam"):
    need = Requirement(line)
    if need.marker is None or any(
        need.marker.evaluate({"extra": extra}) for extra in ("", *sys.argv[1].split(","))
    ):
        have = version(need.name)
        if not need.specifier.contains(have, prereleases=True):
            sys.exit(f"{need} is required, {have} is there")
for module in sys.argv[2].split():
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        sys.exit(f"{module} is damaged")
EOF
}

points_here() { [ "$(cat "${env}/sslam.checkout" 2>/dev/null)" = "${root}" ]; }

# Run pip in the environment; its output goes to the log, errors end the script.
run_pip() {
    "${env}/bin/python" -I -m pip --disable-pip-version-check "$@" >>"${log}" 2>&1 </dev/null
}

point_here() {
    (cd "${root}" && run_pip install --no-deps --no-build-isolation -e .) || return 1
    echo "${root}" >"${env}/sslam.checkout"
}

check_compiler() {
    if [ "${minor}" != 3.11 ] || [ "${stack}" = light ]; then return 0; fi
    command -v cc >/dev/null || command -v gcc >/dev/null ||
        die "a C compiler is needed for Python 3.11 (ESPnet 202511 builds two packages);" \
            "install gcc, or use Python 3.12"
}

install() {
    # pip 26.3 refuses ci_sdr, which ESPnet 202511 requires, for a direct URL in an extra.
    run_pip install 'pip>=24,<26.3' &&
        (cd "${root}" && run_pip install "${constraints[@]}" -e ".[${extras}]") &&
        echo "${root}" >"${env}/sslam.checkout"
}

verify() {
    has_packages && "${env}/bin/python" - "${stack}" >>"${log}" 2>&1 <<'EOF'
import sys

import espnet2_sslam.encoder

if sys.argv[1] != "light":
    import torchaudio
    import espnet2.tasks.abs_task
EOF
}

build() {
    check_compiler
    rm -f "${stamp}"
    : >"${log}"
    if [ -x "${env}/bin/python" ] && [ "$(minor_of "${env}/bin/python")" = "${minor}" ]; then
        say "completing ${env} (log: ${log})"
        if install && verify; then return 0; fi
    fi
    say "building ${env} with $("${python}" -V), 2 to 5 minutes (log: ${log})"
    if [ -n "$(ls -A "${env}" 2>/dev/null)" ] && [ ! -e "${env}/pyvenv.cfg" ]; then
        die "${env} is there and no Python environment; choose another --env"
    fi
    rm -rf "${env}"
    "${python}" -m venv "${env}" >>"${log}" 2>&1 ||
        die "cannot make an environment in ${env}: $(tail -n 1 "${log}")"
    install || die "pip failed: $(grep -i error "${log}" | tail -n 1) (log: ${log})"
    verify || die "the new environment does not work: $(tail -n 1 "${log}") (log: ${log})"
}

# One at a time; the second one then finds the finished environment.
exec 9>"${env}.lock"
flock -n 9 || {
    say "waiting for another set-up of ${env}"
    flock 9
}
if [ "$(cat "${stamp}" 2>/dev/null)" = "$(fingerprint)" ] && has_packages; then
    points_here || point_here || build
else
    build
fi
fingerprint >"${stamp}.new"
mv "${stamp}.new" "${stamp}" # last: an interrupted set-up has no stamp
echo "${env}"
