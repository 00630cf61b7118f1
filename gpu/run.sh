#!/bin/sh
# Checks, times and trains on this machine's GPU. Needs the driver and Python's torch package, whose libraries it uses.
#
#   run.sh test|bench|run [arguments of lightc-gpu]
#   run.sh sanitize [arguments of lightc-gpu test]    small checks under compute-sanitizer
#   run.sh dense      lightning_2b, 50 steps twice: speed, memory, and whether both have the same losses to the bit
#   run.sh curves     lightning_2b, 200 steps of one sequence: losses of kernels, of kernels at a rate 1e-5 higher (what a hair of a
#                     difference grows to), and of libtorch in their place, side by side
#   run.sh grown      lightning_2b_midpoint with a checkpoint, grown exactly to lightning_5b, which trains on from there
#   run.sh share      one rank's share of lightning_120b, one sequence a step
#   run.sh stored     the same with states stored
#   run.sh large      the same share with as many sequences a step as an H200 holds
#   run.sh            test, then bench
#
# PEERS=FILE      what peer_bench.py --json wrote on this machine, for bench
# SCRATCH=DIR     where runs and checkpoints go (70 GB for `grown`); default: out, beside this script
# MEMORY=DIR      where the 20 GB of the checkpoint that is grown go; default: /dev/shm
#
# Training words read token shards from the folder `shards` beside this script: `lightc prepare` makes them.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
packages=$(python3 -c 'import importlib.util as u, os; print(os.path.dirname(u.find_spec("torch").submodule_search_locations[0]))')
folders=$packages/torch/lib
for folder in "$packages"/nvidia/*/lib; do folders=$folders:$folder; done
export LD_LIBRARY_PATH="$folders${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
scratch=${SCRATCH:-$here/out}
memory=${MEMORY:-/dev/shm}

say() { echo "== $(date +%T) $*"; }

# Where the configurations look for shards.
place_shards() {
    for reader in lightning_2b lightning_5b lightning_120b; do
        mkdir -p "$here/out/$reader"
        ln -sfn "$here/shards" "$here/out/$reader/shards"
    done
}

# train STAGE CONFIG OUT [arguments]
train() {
    stage=$1 config=$2 out=$3
    shift 3
    place_shards
    say "$stage $*"
    rm -rf "$out"
    "$here/lightc-gpu" run "$stage" train --config "$here/configs/$config.toml" --out "$out" "$@"
}

# sequences N CONFIG: CONFIG_N has N sequences a step, computed together
sequences() { sed "s/^batch = .*/batch = $1/; /^micro_batch/d" "$here/configs/$2.toml" >"$here/configs/$2_$1.toml"; }

# Losses and gradient norms of a run, for comparing.
numbers() { python3 -c 'import json, sys
for line in open(sys.argv[1] + "/metrics.jsonl"):
    row = json.loads(line)
    if "grad_norm" in row: print({k: v for k, v in row.items() if "loss" in k or "norm" in k})' "$1"; }

dense() {
    for run in first second; do
        train lightning_2b lightning_2b_h200 "$scratch/dense_$run" --steps 50 --no-checkpoints "$@"
        numbers "$scratch/dense_$run" >"$scratch/dense_$run.numbers"
    done
    if cmp "$scratch/dense_first.numbers" "$scratch/dense_second.numbers"; then
        say "two runs: $(wc -l <"$scratch/dense_first.numbers") steps, all losses and norms equal to the bit"
    else
        say "RED: two runs differ"
        return 1
    fi
}

curves() {
    sequences 1 lightning_2b_h200
    sed 's/^peak = 4e-4/peak = 4.00004e-4/' "$here/configs/lightning_2b_h200_1.toml" >"$here/configs/lightning_2b_h200_hair.toml"
    train lightning_2b lightning_2b_h200_1 "$scratch/kernels" --steps 200 --no-checkpoints "$@"
    train lightning_2b lightning_2b_h200_hair "$scratch/hair" --steps 200 --no-checkpoints "$@"
    export LIGHTC_REFERENCE=all
    train lightning_2b lightning_2b_h200_1 "$scratch/libtorch" --steps 200 --no-checkpoints "$@"
    say "next-token loss, mean of 20 steps: kernels, kernels at another rate, libtorch"
    python3 -c 'import json, sys
ntp = [[json.loads(line)["ntp"] for line in open(run + "/metrics.jsonl") if "grad_norm" in line] for run in sys.argv[1:]]
for at in range(0, 200, 20): print(f"steps {at + 1:3} to {at + 20:3}", *(f"{sum(x[at:at + 20]) / 20:8.4f}" for x in ntp))' \
        "$scratch/kernels" "$scratch/hair" "$scratch/libtorch"
}

grown() {
    train lightning_2b_midpoint lightning_2b_h200 "$memory/lightc_dense" --steps 20
    say "grown to lightning_5b"
    rm -rf "$scratch/grown"
    # The stages of lightc-gpu are those of this source, compiled from another file that imports it.
    "$here/lightc" grow "$here/models/lightning/lightning.llm" --map dense_to_moe_exact --accept-changed-source \
        --from "$memory"/lightc_dense/checkpoints/step_00000020 --to "$scratch/grown"
    rm -rf "$memory/lightc_dense"
    train lightning_5b lightning_5b_h200 "$scratch/lightning_5b" --from "$scratch/grown" --accept-changed-source \
        --steps 40 --no-checkpoints "$@"
}

share() { train lightning_120b lightning_120b_share "$scratch/share" --steps 10 --no-checkpoints "$@"; }
stored() { train lightning_120b lightning_120b_share "$scratch/stored" --steps 5 --no-checkpoints --store-states "$@"; }
large() {
    sequences 8 lightning_120b_share
    train lightning_120b lightning_120b_share_8 "$scratch/large" --steps 6 --no-checkpoints "$@"
}

what=${1:-all}
[ $# -gt 0 ] && shift
case $what in
test | bench | run) exec "$here/lightc-gpu" "$what" "$@" ;;
# Each tensor is an allocation of its own, so that what is read beside it is found.
sanitize)
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    exec compute-sanitizer --error-exitcode 9 "$here/lightc-gpu" test --small "$@"
    ;;
dense | curves | grown | share | stored | large)
    mkdir -p "$scratch"
    "$what" "$@"
    ;;
all)
    "$here/lightc-gpu" test
    "$here/lightc-gpu" bench ${PEERS:+--peers "$PEERS"}
    ;;
*)
    echo "run.sh: unknown word '$what'; the first lines of $0 list them" >&2
    exit 2
    ;;
esac
