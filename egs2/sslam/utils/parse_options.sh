# shellcheck shell=bash
# Source this after the defaults: `--some_option value` (or --some-option) sets the
# variable `some_option`, which must have a default; `--help` prints ${help_message}.
# ${meant[some_option]} is what to say of an option of ESPnet that is not there.

_option_error() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help)
            printf '%s\n' "${help_message:-no help}"
            exit 0
            ;;
        --*=*) _option_error "write --option value, not ${1}" ;;
        --?*) ;;
        *) _option_error "no argument without --option is expected, got '$1'" ;;
    esac
    _name="${1#--}"
    _name="${_name//-/_}"
    # Only lower-case names: an option must never set PATH or HOME.
    if ! [[ "${_name}" =~ ^[a-z][a-z0-9_]*$ ]] || [ -z "${!_name+set}" ]; then
        _hint="--help lists the options"
        if [ -n "${meant[${_name}]+set}" ]; then
            _hint="here: ${meant[${_name}]}"
        else
            mapfile -t _known < <(grep -oE -- '--[a-z0-9_]+' <<<"${help_message:-}")
            _near="$(python3 -c 'import difflib, sys
print(*difflib.get_close_matches(sys.argv[1], sys.argv[2:], 1, 0.65))' \
                "--${_name}" "${_known[@]}" 2>/dev/null)" || true
            if [ -n "${_near}" ]; then _hint="did you mean ${_near}?"; fi
        fi
        _option_error "unknown option $1; ${_hint}"
    fi
    [ $# -ge 2 ] || _option_error "$1 needs a value"
    printf -v "${_name}" '%s' "$2"
    shift 2
done
