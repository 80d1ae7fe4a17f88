"""Adds what CMake builds to the wheel: the library, the daemon it may start, and the command line.
They come from $TERRACE_BUILD_DIR, or from build/release of the checkout (make build)."""

import os
import pathlib
import shutil

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

BUILT = ("libterrace.so", "libterrace_codec.so", "terraced", "terrace")


def build_directory() -> pathlib.Path:
    named = os.environ.get("TERRACE_BUILD_DIR")
    if named:
        return pathlib.Path(named)
    return pathlib.Path(__file__).resolve().parents[2] / "build" / "release"


class BuildPy(build_py):
    def run(self) -> None:
        super().run()
        source = build_directory()
        for name in BUILT:
            if not (source / name).exists():
                raise SystemExit(f"{source / name} is missing: run `make build` first, or set "
                                 "TERRACE_BUILD_DIR to a build that has it")
            shutil.copy2(source / name, pathlib.Path(self.build_lib) / "terrace_kv" / name)


class BinaryDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        return True


class PlatformWheel(bdist_wheel):
    """ctypes binds at run time: one wheel serves every Python 3 of the platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(distclass=BinaryDistribution,
      cmdclass={"build_py": BuildPy, "bdist_wheel": PlatformWheel})
