"""Pre-train an encoder without labels: phase 1 (EAT) or phase 2 (SSLAM)."""

from espnet2_sslam.bin.cli import run_main


def main(cmd=None) -> None:
    """Train; `--help` lists the options, `--print_config` the whole configuration."""
    from espnet2_sslam.tasks import SSLAMTask

    SSLAMTask.main(cmd=cmd)


if __name__ == "__main__":
    run_main(main)
