"""The wheel by itself: built, installed where there is no checkout, and at work; see `make test-wheel`."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

EXPERIMENT = """
rounds = 2
data.source = "digits"
engine.kind = "serial"
"""


def run(*command: object, cwd: Path) -> str:
    """Run a program that knows nothing of this checkout, and return what it says."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.wheel
@pytest.mark.timeout(600)
def test_a_wheel_runs_a_federation_where_there_is_no_checkout(tmp_path):
    run(sys.executable, "-m", "pip", "wheel", ROOT, "--no-deps", "--quiet", "-w", tmp_path, cwd=tmp_path)  # fmt: skip
    (wheel,) = tmp_path.glob("fedssl-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (facts,) = (archive.read(name).decode() for name in names if name.endswith("/METADATA"))
    assert (ROOT / "README.md").read_text(encoding="utf-8") in facts  # its description
    # The one name of its own that it takes among a user's modules; clients/ and strategies/ are below it.
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"fedssl"}
    assert {"fedssl/clients/client_app.py", "fedssl/strategies/fedavg.py"} <= set(names)
    assert len(names) == len(set(names))
    # An environment with the libraries and without this checkout: what a .pth file names is searched, not installed.
    home = tmp_path / "environment"
    run(sys.executable, "-m", "venv", home, cwd=tmp_path)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    libraries = home / "lib" / version / "site-packages" / "libraries.pth"
    libraries.write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    python = home / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-deps", "--quiet", wheel, cwd=tmp_path)
    place = run(python, "-c", "import fedssl; print(fedssl.__file__)", cwd=tmp_path)
    assert Path(place.strip()).is_relative_to(home)
    (tmp_path / "e.toml").write_text(EXPERIMENT, encoding="utf-8")
    said = run(home / "bin" / "fedssl", "run", "e.toml", "--plain", "--out", "run", cwd=tmp_path)
    assert "round" in said
    assert (tmp_path / "run" / "model.safetensors").exists()
    for page in ("report.html", "numbers.csv"):
        assert (tmp_path / "run" / page).exists()
