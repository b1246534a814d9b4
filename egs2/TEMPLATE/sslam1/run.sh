#!/usr/bin/env bash
# Pre-training, both phases
set -euo pipefail

train_set="train"
valid_set="valid"
train_configs="conf/train_eat_own.yaml conf/train_sslam_own.yaml"

./sslam.sh \
    --train_set "${train_set}" \
    --valid_set "${valid_set}" \
    --train_configs "${train_configs}" \
    "$@"
