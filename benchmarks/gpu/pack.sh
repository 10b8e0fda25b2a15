#!/usr/bin/env bash
# Packs TorchRec and FBGEMM (CUDA) for a GPU machine that has PyTorch but no network, into parts small enough to copy.
#   benchmarks/gpu/pack.sh OUT [PYTHON] [FBGEMM] [TORCHREC] [PART]     e.g.  pack.sh work/pack 3.12 1.6.0 1.6.1 52M
#   WHEELS=DIR benchmarks/gpu/pack.sh OUT ...                          wheels that are there already: nothing is fetched
# FBGEMM and TorchRec must be those of that machine's PyTorch: 1.6 for 2.11 (there is no TorchRec 1.6.0 to be had,
# but 1.6.1), 1.8 for 2.13. Takes 3 GB of TMPDIR.
# There:  mkdir -p site && cat p.* | tar -xJ -C site && PYTHONPATH=site python benchmarks/gpu/run_all.py
set -euo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd); python=${2:-3.12}; fbgemm=${3:-1.6.0}; torchrec=${4:-1.6.1}; part=${5:-52M}
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
rm -f "$out"/p.*
get() {
  python3 -m pip download -q --no-deps --only-binary=:all: --python-version "$python" --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform any \
    -d "$tmp/whl" "$@"
}
if [ -z "${WHEELS:-}" ]; then
  get "fbgemm-gpu==$fbgemm" "torchrec==$torchrec" torchmetrics==1.0.3
  get tensordict pyre-extensions iopath typing-inspect pyvers orjson
fi
mkdir "$tmp/site"
for wheel in "${WHEELS:-$tmp/whl}"/*.whl; do python3 -m zipfile -e "$wheel" "$tmp/site"; done
rm -rf "$tmp"/site/fbgemm_gpu/{experimental,test,bench}
tar -C "$tmp/site" -cf - . | xz -T0 -6 | split -b "$part" -d - "$out/p."
ls -l "$out"
