"""The native parts; everything else is in pyproject.toml."""

from setuptools import Extension, setup

FLAGS = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-missing-field-initializers"]
SHARED = ["keigo/cache/chunks.h"]

setup(
    ext_modules=[
        Extension("fusefs._datapath", ["fusefs/_datapath.c"], depends=SHARED, extra_compile_args=FLAGS),
        Extension("keigo.cache._chunks", ["keigo/cache/_chunks.c"], depends=SHARED, extra_compile_args=FLAGS),
    ]
)
