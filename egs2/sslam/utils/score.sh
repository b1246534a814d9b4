#!/usr/bin/env bash
# Stage 7 for one trained model and one test split: predictions, then scores.
set -euo pipefail

if [ $# -ne 8 ]; then
    echo "Usage: score.sh PYTHON MODEL CONFIG TEST_DIR LIST,speech,KIND CLASS_LIST TASK OUT" >&2
    exit 1
fi
python="$1" model="$2" config="$3" test_dir="$4" audio="$5" classes="$6" task="$7" out="$8"

"${python}" -m espnet2_sslam.bin.sslam_cls_inference --config "${config}" \
    --model_file "${model}" --output_dir "${out}" \
    --data_path_and_name_and_type "${test_dir}/${audio}"
"${python}" -m espnet2_sslam.bin.sslam_score --predictions "${out}/predictions.npz" \
    --text "${test_dir}/text" --class_list "${classes}" --task "${task}" \
    --output_dir "${out}"
