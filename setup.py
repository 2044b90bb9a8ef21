"""Installs the package ``adalora`` from ``src/``.

It needs this repository's ``loralib`` (1.0 or later), whose distribution is ``adalora-loralib``, as
the package index knows another project as ``loralib``. From a checkout both folders are installed
at once: ``pip install -e loralib -e .``
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """Return the version that ``adalora/__init__.py`` states, without importing it."""
    text = (ROOT / "src" / "adalora" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise RuntimeError('src/adalora/__init__.py has no line of the form __version__ = "1.2.3"')
    return found.group(1)


def read_description() -> str:
    """Return the README for the package's page; a checkout without one still installs."""
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


TEST = ["pytest>=8", "pytest-cov>=5", "pytest-xdist>=3.6", "hypothesis>=6.100"]

setup(
    name="adalora",
    version=read_version(),
    description="AdaLoRA (adaptive low-rank adaptation) for DeBERTaV3 and other encoders",
    long_description=read_description(),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={
        # Patterns are relative to src/adalora: the built-in nano model, any presets, and the
        # templates of the reports.
        "adalora": [
            *("**/*.json", "**/*.safetensors", "**/*.model", "**/*.txt", "**/*.yaml"),
            *("**/*.html", "**/*.css", "**/*.js"),
        ],
    },
    entry_points={"console_scripts": ["adalora = adalora.cli:main"]},
    install_requires=[
        "adalora-loralib>=1.0",
        "torch>=2.11",
        "transformers>=5.17",
        "accelerate>=1.1",
        "datasets>=3.0",
        "evaluate>=0.4.3",
        "numpy>=1.26",
        "scikit-learn>=1.4",
        "scipy>=1.11",
        "safetensors>=0.4.3",
        "huggingface-hub>=1.0",
        "filelock>=3.30",
        "tensorboard>=2.16",
        "rich>=13.7",
        "psutil>=5.9",
        "pyyaml>=6.0",
        "sentencepiece>=0.2",
        "protobuf>=4.25",
    ],
    extras_require={
        "lightning": ["lightning>=2.5"],
        "peft": ["peft>=0.19"],
        "report": ["matplotlib>=3.9", "jinja2>=3.1"],
        "sweep": ["ray>=2.44"],
        "export": ["onnx>=1.20", "onnxruntime>=1.23", "onnxscript>=0.5.6"],
        "test": TEST,
        "dev": [*TEST, "ruff>=0.9", "mypy>=1.14"],
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
