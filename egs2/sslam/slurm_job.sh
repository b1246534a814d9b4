#!/usr/bin/env bash
#SBATCH --job-name sslam --output %x-%j.log --open-mode append
#SBATCH --time 24:00:00 --cpus-per-task 16 --gres gpu:4
#SBATCH --requeue --signal B:USR1@120
# The whole run.sh as one Slurm job that outlives its time limit; submit it from here:
#
#     sbatch slurm_job.sh --ngpu 4 --corpus folder --corpus_dir AUDIO ...
#
# 120 seconds before the limit Slurm sends SIGUSR1: the trainings end their update and
# write all that they need, run.sh ends with status 85, and the job is queued again
# under its number, with the same options. The lines above are sbatch's options; those
# of its command line (--time 1:00:00, --partition NAME) count more.

run=
for signal in USR1 TERM; do # TERM: the job must make room for another
    # shellcheck disable=SC2064 # expanded now
    trap "signalled=1; [ -z \"\${run}\" ] || kill -s ${signal} \"\${run}\"" "${signal}"
done
./run.sh "$@" &
run=$!
signalled=1
while [ -n "${signalled}" ]; do # a signal ends the wait, not run.sh
    signalled=
    wait "${run}"
    status=$?
done
if [ "${status}" -eq 85 ]; then scontrol requeue "${SLURM_JOB_ID}"; fi
exit "${status}"
