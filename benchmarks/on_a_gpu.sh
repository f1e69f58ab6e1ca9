#!/usr/bin/env bash
# On a machine with a GPU: verify the kernels on it, then time them beside torch, torch.compile and Liger-Kernel.
#
#     benchmarks/on_a_gpu.sh [FOLDER]       # default: gpu-NAME-DATE below benchmarks/results
#
# Everything goes into one folder: env.txt, verify.json, verify.txt (the text to paste), and the bench's tables. Kernels
# that fail the verification are not timed. PYTHON names another interpreter than .venv's; arguments for the bench, such
# as --quick, go into ARGS.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
SUBJECTS="gpu_channel_norms gpu_sample_norms gpu_training_step"

name=$("$PYTHON" -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-") if torch.cuda.is_available() else "")')
if [ -z "$name" ]; then
    echo "on_a_gpu.sh: expected a GPU that this torch can use, found none ($PYTHON -m gammabeta env says more)" >&2
    exit 2
fi
folder=${1:-benchmarks/results/gpu-$name-$(date +%F)}
mkdir -p "$folder"

"$PYTHON" -c 'import liger_kernel' 2>/dev/null ||
    echo "Liger-Kernel is not installed, so it is not timed: $PYTHON -m pip install --no-deps liger-kernel" >&2
"$PYTHON" -m gammabeta env >"$folder/env.txt"

failed=0
"$PYTHON" -m gammabeta verify --format json >"$folder/verify.json" || failed=$?
"$PYTHON" -c 'import json, sys; from gammabeta.proof.report import text_of; print(text_of(json.load(open(sys.argv[1]))))' \
    "$folder/verify.json" | tee "$folder/verify.txt"
if [ "$failed" != 0 ]; then
    echo "on_a_gpu.sh: the verification failed, so nothing is timed: $folder/verify.txt is the text to report" >&2
    exit "$failed"
fi

# shellcheck disable=SC2086
"$PYTHON" -m gammabeta bench $SUBJECTS --out "$folder" ${ARGS:-}
echo "everything is in $folder"
