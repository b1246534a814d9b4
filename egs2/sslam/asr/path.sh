# shellcheck shell=bash
# What a job of slurm.pl or queue.pl reads; run.sh reads the recipe's own.
. ../path.sh
