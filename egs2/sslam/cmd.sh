# shellcheck shell=bash disable=SC2034
# How the trainings, and the scoring of stage 7, are started: on this machine, or as jobs
# of Slurm or Sun Grid Engine. Choose by editing the line below, or:
#
#     cmd_backend=slurm MAIN_ROOT=/path/to/espnet ./run.sh ...
#
# slurm.pl and queue.pl are not in ESPnet's pip package. slurm.pl comes with its source,
#     git clone --depth 1 https://github.com/espnet/espnet
# both with Kaldi's, of which nothing needs to be compiled:
#     git clone --depth 1 https://github.com/kaldi-asr/kaldi
# MAIN_ROOT names either clone. Partitions, queues and memory are in conf/slurm.conf and
# conf/queue.conf: adapt them to your cluster (`sinfo`, `qconf -sql` list what it has).
cmd_backend="${cmd_backend:-local}"

case "${cmd_backend}" in
    local) train_cmd="run.pl" cuda_cmd="run.pl" ;;
    slurm) train_cmd="slurm.pl" cuda_cmd="slurm.pl" ;;
    queue) train_cmd="queue.pl" cuda_cmd="queue.pl" ;;
    *)
        echo "cmd.sh: cmd_backend is local, slurm or queue, not '${cmd_backend}'" >&2
        exit 1
        ;;
esac
