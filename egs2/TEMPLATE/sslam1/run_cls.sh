#!/usr/bin/env bash
# Fine-tuning of the pre-trained encoder by ESPnet's own cls.sh (one label per clip)
set -euo pipefail

train_set="train"
valid_set="valid"
test_sets="test"
cls_config=conf/train_cls_sslam.yaml # its `pretrained` names the weights

# The normalisation is the encoder's own: none on the waveform
./cls.sh \
    --python espnet2-sslam-python \
    --stage 2 \
    --fs 16k \
    --feats_normalize none \
    --cls_config "${cls_config}" \
    --train_set "${train_set}" \
    --valid_set "${valid_set}" \
    --test_sets "${test_sets}" \
    "$@"
