# shellcheck shell=bash disable=SC2034
# How jobs are started. Backends other than `local` need an ESPnet or Kaldi clone, named
# by MAIN_ROOT (its utils/ holds slurm.pl and queue.pl) and its conf/slurm.conf or
# conf/queue.conf. Choose by editing this line, or: cmd_backend=slurm ./run.sh ...
cmd_backend="${cmd_backend:-local}"

case "${cmd_backend}" in
    local) train_cmd="run.pl" cuda_cmd="run.pl" ;;
    slurm) train_cmd="slurm.pl" cuda_cmd="slurm.pl" ;; # partitions: conf/slurm.conf
    queue) train_cmd="queue.pl" cuda_cmd="queue.pl" ;; # Sun Grid Engine: conf/queue.conf
    *)
        echo "cmd.sh: cmd_backend is local, slurm or queue, not '${cmd_backend}'" >&2
        exit 1
        ;;
esac
