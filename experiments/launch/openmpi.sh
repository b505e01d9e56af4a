#!/bin/bash
# experiments/launch/openmpi.sh "-n 16 --hostfile hosts" CONFIG WORKDIR [--config.NAME=VALUE ...]
#
# One process a GPU, the k-th of a host on its k-th GPU. With Open MPI up to version 4 a plain
# `mpirun -n 16 ssd-jax train ...` does as well, for JAX finds the processes itself; this works with
# version 5 too. COORDINATOR is a free port of the host of rank 0. WORKDIR is a folder that all
# hosts share.
set -euo pipefail

mpirun_options=${1:?options of mpirun} config=${2:?CONFIG} workdir=${3:?WORKDIR}
shift 3
coordinator=${COORDINATOR:-$(hostname):29500}

# Without --bind-to none, mpirun binds each process, and all threads that decode for it, to a core.
# shellcheck disable=SC2086
setsid mpirun --bind-to none $mpirun_options bash -c '
    export JAX_LOCAL_DEVICE_IDS=$OMPI_COMM_WORLD_LOCAL_RANK
    exec ssd-jax train "$@" --num-processes "$OMPI_COMM_WORLD_SIZE" \
        --process-id "$OMPI_COMM_WORLD_RANK"
' ssd-jax --config "$config" --workdir "$workdir" --coordinator "$coordinator" "$@" &
mpirun=$!
# After SIGTERM or SIGINT Open MPI kills its processes within a second. SIGUSR1 it passes on: the run
# saves and ends with code 75, which mpirun returns. With setsid, Ctrl-C reaches this script alone.
trap 'kill -USR1 "$mpirun"' TERM INT USR1
while kill -0 "$mpirun" 2>/dev/null; do wait "$mpirun" || :; done # a trap ends `wait` too
wait "$mpirun" && code=0 || code=$?
exit "$code"
