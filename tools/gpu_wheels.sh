#!/usr/bin/env bash
# Bring the few packages that a machine with a GPU, torch and no network lacks.
set -euo pipefail

if [ "${1:-}" = "--help" ] || [ "${1:-}" = "-h" ]; then
    cat <<'EOF'
Usage: tools/gpu_wheels.sh [PYTHON_VERSION]

Downloads about 7 MB of wheels for Linux x86-64 (default: Python 3.12) into .whl/, in
the versions of constraints/. Copy the checkout with .whl/ to a machine that has torch,
torchaudio, numpy, scipy, scikit-learn, safetensors, transformers, tensorboard,
matplotlib and pytest; `make gpu PYTHON=python3` there uses them without installing
anything into that Python.
EOF
    exit 0
fi

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
version="${1:-3.12}"
packages=(espnet typeguard humanfriendly torch-complex librosa omniio soundfile cffi
    soxr)
platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do
    platforms+=(--platform "${tag}_x86_64")
done
rm -rf "${root}/.whl"
python3 -m pip download --quiet --no-deps --only-binary=:all: \
    --python-version "${version}" --implementation cp "${platforms[@]}" --platform any \
    --constraint "${root}/constraints/py${version}.txt" --dest "${root}/.whl" \
    "${packages[@]}"
du -sh "${root}/.whl"
