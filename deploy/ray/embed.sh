#!/bin/bash
# RAY_ADDRESS=http://head:8265 GPUS=1 deploy/ray/embed.sh /shared/ads /shared/models/Llama-3.2-1B
# Finished chunks stay: the same command goes on.
set -euo pipefail
DATASET=${1:?prepared data set, on a disk that the node sees}
MODEL=${2:-smollm2-135m}
ray job submit --working-dir . --entrypoint-num-gpus "${GPUS:-0}" -- \
  python -m recsys embed "$DATASET" --model "$MODEL"
