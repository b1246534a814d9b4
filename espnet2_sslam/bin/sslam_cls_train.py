"""Fine-tune an encoder on labelled clips, or train a head on a frozen one."""

from espnet2_sslam.bin.cli import run_main


def main(cmd=None) -> None:
    """Train; `--help` lists the options, `--print_config` the whole configuration."""
    from espnet2_sslam.tasks import SSLAMClassificationTask

    SSLAMClassificationTask.main(cmd=cmd)


if __name__ == "__main__":
    run_main(main)
