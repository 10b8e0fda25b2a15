#!/bin/bash
# RAY_ADDRESS=http://head:8265 deploy/ray/score.sh /shared/run/model '/shared/logs/*.parquet' /shared/scores
# The shards are spread over the cluster; finished ones stay: the same command goes on.
set -euo pipefail
MODEL=${1:?model folder, on a disk that all nodes see}
INPUT=${2:?Parquet file or glob}
OUTPUT=${3:?output folder}
ray job submit --working-dir . -- \
  python serve.py batch --engine ray --model "$MODEL" --input "$INPUT" --output "$OUTPUT"
