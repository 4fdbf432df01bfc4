"""README's `make` targets in full, in a clean clone with its own environment: `make test-readme`."""

import os
import shlex
import subprocess

import pytest

from tests.docs.pages import README, ROOT, blocks

pytestmark = [pytest.mark.readme, pytest.mark.timeout(7200)]


def test_the_make_targets_of_the_readme_run_on_a_clean_clone(tmp_path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    lines = [line for block in blocks(README) if block.is_shell for line in block.text.splitlines()]
    targets = [line for line in lines if line.startswith("make ")]
    assert len(targets) >= 2
    own = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}  # and nothing of this environment's
    for line in targets:
        subprocess.run(shlex.split(line, comments=True), cwd=clone, env=own, check=True)
