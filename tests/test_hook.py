"""The encoder in ESPnet's own tasks, and the wrapper that takes the place of python."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from espnet2.train.class_choices import ClassChoices

from espnet2_sslam import _hook
from espnet2_sslam.encoder import SSLAMEncoder

ROOT = Path(__file__).resolve().parent.parent


class OtherEncoder(AbsEncoder):
    """Something else with our name."""

    def forward(self, xs_pad, ilens, prev_states=None):
        """Not used."""

    def output_size(self):
        """Not used."""


def task(**choices):
    module = ModuleType("espnet2.tasks.fake")
    vars(module).update(choices)
    return module


def python(*arguments, **options):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        text=True,
        capture_output=True,
        **options
    )


def test_encoder_is_added_to_choices_of_audio_encoders_only():
    audio = ClassChoices("encoder", {"other": OtherEncoder}, type_check=AbsEncoder)
    rest = ClassChoices("decoder", {"other": OtherEncoder})
    for _ in range(2):
        _hook.register(task(encoder_choices=audio, decoder_choices=rest))
    assert audio.get_class("sslam") is SSLAMEncoder
    assert list(rest.classes) == ["other"]


def test_a_clash_of_names_is_an_error():
    taken = ClassChoices("encoder", {"sslam": OtherEncoder}, type_check=AbsEncoder)
    with pytest.raises(ImportError, match="encoder_choices has another class"):
        _hook.register(task(encoder_choices=taken))


def test_installing_twice_registers_once():
    _hook.install()
    assert sys.meta_path.count(_hook.TaskFinder) == 1


def test_importing_the_package_is_light():
    code = "import espnet2_sslam, sys; print('torch' in sys.modules)"
    assert python("-c", code).stdout.strip() == "False"


PROBE = """
import multiprocessing, sys, types
from espnet2_sslam import __main__ as wrapper

def main():
    code = "import sys; print('espnet2_sslam._hook' in sys.modules)"
    child = multiprocessing.get_context("spawn").Process(target=exec, args=(code,))
    child.start()
    child.join()

module = types.ModuleType("espnet2_sslam.bin.probe")
module.__file__, module.main = "probe.py", main
sys.modules[module.__name__] = module
"""


def test_processes_spawned_under_the_wrapper_know_the_encoder():
    run = "wrapper._run_module(module.__name__, [])"
    assert python("-c", PROBE + run).stdout.strip() == "True"
    assert python("-c", PROBE + "main()").stdout.strip() == "False"


def test_wrapper_runs_code_scripts_and_modules(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys; print(__name__, sys.argv[1:])\n")
    wrapper = ("-m", "espnet2_sslam")
    expected = "__main__ ['a', '-b']"
    for form in (("-c", script.read_text()), (str(script),)):
        assert python(*wrapper, *form, "a", "-b").stdout.strip() == expected
    assert "usage" in python(*wrapper, "-m", "json.tool", "-h").stdout


@pytest.mark.parametrize("arguments", [(), ("-m",), ("-u", "x.py")])
def test_wrapper_used_wrongly_shows_its_usage(arguments):
    result = python("-m", "espnet2_sslam", *arguments)
    assert result.returncode == 1 and result.stderr.startswith("usage:")


@pytest.mark.slow
def test_espnet_commands_offer_the_encoder_through_the_wrapper():
    command = ("-m", "espnet2.bin.asr_train", "--print_config", "--encoder", "sslam")
    result = python("-m", "espnet2_sslam", *command)
    assert result.returncode == 0, result.stderr
    assert yaml.safe_load(result.stdout)["encoder_conf"]["embed_dim"] == 768
    assert python(*command).returncode != 0
