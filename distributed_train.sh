#!/usr/bin/env bash
# Train on several devices: ./distributed_train.sh NUM_PROC [arguments of train.py]
#
# NUM_PROC is the number of processes (GPUs) on this node. For several nodes run the same line on each, with
#   NNODES=2 MASTER_ADDR=host0 [MASTER_PORT=29400]     or     NNODES=2 RDZV_ENDPOINT=host0:29400
# in the environment; NODE_RANK, RDZV_ID and RDZV_BACKEND (c10d) are passed on to torchrun where they are set.
set -eu
if ! [[ "${1:-}" =~ ^[1-9][0-9]*$ ]]; then
    echo "distributed_train.sh: error: the first argument is the number of processes on this node" >&2
    exit 2
fi
num_proc=$1
shift
if [ "${NNODES:-1}" = 1 ]; then
    launch=(--standalone)
else
    endpoint=${RDZV_ENDPOINT:-${MASTER_ADDR:+$MASTER_ADDR:${MASTER_PORT:-29400}}}
    if [ -z "$endpoint" ]; then
        echo "distributed_train.sh: error: NNODES=$NNODES needs MASTER_ADDR or RDZV_ENDPOINT" >&2
        exit 2
    fi
    launch=(--nnodes "$NNODES" --rdzv-backend "${RDZV_BACKEND:-c10d}" --rdzv-endpoint "$endpoint"
            --rdzv-id "${RDZV_ID:-a2aug}" ${NODE_RANK:+--node-rank "$NODE_RANK"})
fi
exec torchrun "${launch[@]}" --nproc-per-node "$num_proc" "$(dirname "$0")/train.py" "$@"
