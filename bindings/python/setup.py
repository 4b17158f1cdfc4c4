"""Builds the shared library and puts it into the wheel, beside the package's modules.

ARROWQUANT_LIBRARY names a library that is built already, and is then taken instead.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = {"win32": "arrowquant.dll", "darwin": "libarrowquant.dylib"}.get(
    sys.platform, "libarrowquant.so"
)
# How a Mach-O file for one processor begins.
PROCESSORS = {
    bytes.fromhex("cffaedfe0c000001"): "arm64",
    bytes.fromhex("cffaedfe07000001"): "x86_64",
}


def version():
    """That of the crate."""
    try:
        manifest = (ROOT / "Cargo.toml").read_text(encoding="utf-8")
    except OSError as error:
        sys.exit(
            f"the package is built inside the ArrowQuant repository, whose Cargo.toml is missing: {error}"
        )
    return re.search(r'^version = "(.+)"', manifest, re.MULTILINE).group(1)


def library():
    """Path of the shared library, built if none is given."""
    given = os.environ.get("ARROWQUANT_LIBRARY")
    if given:
        if not os.path.isfile(given):
            sys.exit(f"ARROWQUANT_LIBRARY names no file: {given}")
        return given
    command = ["cargo", "build", "--release", "--lib", "--locked"]
    command += ["--message-format", "json-render-diagnostics"]
    try:
        built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    except FileNotFoundError:
        sys.exit(
            "cargo was not found: install Rust (https://rustup.rs), or name a library that is "
            "built already in the environment variable ARROWQUANT_LIBRARY"
        )
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(command)} failed with exit code {error.returncode}")
    # Cargo says where it put the library: the target folder may be anywhere.
    for line in built.stdout.splitlines():
        for file in json.loads(line).get("filenames", []):
            if os.path.basename(file) == LIBRARY:
                return file
    sys.exit(f"cargo built no {LIBRARY}")


class BuildWithLibrary(build_py):
    def run(self):
        super().run()
        # An editable install has no folder of its own to put it; ARROWQUANT_LIBRARY is used at run
        # time then.
        if not self.editable_mode:
            folder = Path(self.build_lib, "arrowquant")
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(library(), folder / LIBRARY)


class PlatformWheel(bdist_wheel):
    """For one platform, but any Python 3: ctypes needs no Python headers."""

    def finalize_options(self):
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self):
        platform = super().get_tag()[2]
        file = Path(self.bdist_dir, "arrowquant", LIBRARY)
        # The Python of python.org is for both of Apple's processors, what cargo builds for one.
        if platform.endswith("_universal2") and file.exists():
            with file.open("rb") as opened:
                processor = PROCESSORS.get(opened.read(8), "universal2")
            platform = platform.replace("universal2", processor)
        return "py3", "none", platform


class BinaryDistribution(Distribution):
    def has_ext_modules(self):
        return True


with tempfile.TemporaryDirectory() as scratch:
    # Nothing is left in the source tree.
    setup(
        version=version(),
        cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": PlatformWheel},
        distclass=BinaryDistribution,
        options={
            "build": {"build_base": os.path.join(scratch, "build")},
            "bdist_wheel": {"bdist_dir": os.path.join(scratch, "wheel")},
            "egg_info": {"egg_base": scratch},
        },
    )
