# shellcheck shell=bash disable=SC2034
# How the trainings, and the scoring of stage 7, are started: on this machine, or as jobs
# of Slurm, Sun Grid Engine or PBS. Choose by editing the line below, or:
#
#     cmd_backend=slurm MAIN_ROOT=/path/to/espnet ./run.sh ...
#
# slurm.pl, queue.pl and pbs.pl are not in ESPnet's pip package. They come with its source,
#     git clone --depth 1 https://github.com/espnet/espnet
# the first two with Kaldi's too, of which nothing needs to be compiled:
#     git clone --depth 1 https://github.com/kaldi-asr/kaldi
# MAIN_ROOT names either clone. Partitions, queues and memory are in conf/slurm.conf,
# conf/queue.conf and conf/pbs.conf: adapt them to your cluster (`sinfo`, `qconf -sql` and
# `qstat -Q` list what it has).
cmd_backend="${cmd_backend:-local}"

case "${cmd_backend}" in
    local) train_cmd="run.pl" cuda_cmd="run.pl" ;;
    slurm) train_cmd="slurm.pl" cuda_cmd="slurm.pl" ;;
    queue) train_cmd="queue.pl" cuda_cmd="queue.pl" ;;
    pbs) train_cmd="pbs.pl" cuda_cmd="pbs.pl" ;;
    *)
        echo "cmd.sh: cmd_backend is local, slurm, queue or pbs, not '${cmd_backend}'" >&2
        exit 1
        ;;
esac
