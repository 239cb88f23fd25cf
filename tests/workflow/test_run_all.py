"""run_all.sh: which interpreter it takes, how it sets up, what it says when it cannot.

A stand-in for Python records what it is asked, so that no test fetches a package. Set-up for real
takes minutes and gigabytes; CI does it before each of its runs.
"""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import toy_project

# Answers like a Python of version $VERSION. Its environment is complete if COMPLETE is 1, or, in a
# virtual environment, once pip ran there. pip fails with the message $PIP if there is one, or where
# $NO_CPU is set for the CPU build of torch, whose index answers if $INDEX is set. It does not start
# with PYTHONHOME, and lacks numpy with PYTHONPATH. What run_all.sh finally starts is printed, with the
# folder of the interpreter.
STAND_IN = """#!/usr/bin/env bash
here="$(cd "$(dirname "$0")" && pwd)"
[[ -z "$PYTHONHOME" ]] || {{ echo "No module named encodings"; exit 1; }}
case "$*" in
  "-c import sys; sys.exit"*) exec {python} -c "import sys; sys.version_info = $VERSION; ${{*:2}}" ;;
  "-c import sys, urllib"*) [[ -n "$INDEX" ]] ;;
  "--version") echo "Python $VERSION" ;;
  "-m dcopy.workflow.environment --pip") echo "export PIP_INDEX_URL='of the user'" ;;
  "-m dcopy.workflow.environment"*)
    [[ -z "$PYTHONPATH" ]] || {{ echo "lacks numpy"; exit 1; }}
    [[ "$COMPLETE" == 1 || -e "$here/complete" ]] || {{ echo "lacks torch"; exit 1; }}
    ;;
  "-m venv "*)
    [[ "$3" == /* || "$PWD" != *:* ]] || exit 1
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
    ;;
  "-m pip install"*)
    [[ -z "$PIP" && ! ( -n "$NO_CPU" && "$*" == *--index-url* ) ]] || {{ echo "ERROR: $PIP"; exit 1; }}
    echo "$* PIP_USER=$PIP_USER PIP_INDEX_URL=$PIP_INDEX_URL" >>"$CALLS"
    sleep "$SLOW"
    touch "$here/complete"
    ;;
  "-m pytest"* | "-m dcopy.workflow.preset smoke"*)
    echo "$PYTHONDONTWRITEBYTECODE$here runs $*"
    exit "$CODE"
    ;;
  *) exec {python} "$@" ;;
esac
"""
TOOLS = ("awk", "bash", "cmp", "cp", "df", "dirname", "env", "flock", "grep", "ln", "mkdir", "mktemp", "rm",
         "sleep", "tail", "tee", "touch", "uname")  # fmt: skip


class Machine:
    """A checkout, and a PATH with the stand-in as its only Python."""

    def __init__(self, folder: Path):
        self.root = toy_project.make(folder / "a project")
        self.bin, self.calls = folder / "usr/bin", folder / "calls"
        self.bin.mkdir(parents=True)
        self.program("python3", STAND_IN.format(python=sys.executable))
        for name in TOOLS:
            if found := shutil.which(name):
                (self.bin / name).symlink_to(found)
        self.settings = {"VERSION": "(3, 11)", "COMPLETE": "0", "PIP": "", "SLOW": "0", "CODE": "0"}
        self.settings |= {"DCOPY_TORCH_INDEX": "none"}

    def program(self, name: str, text: str) -> None:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def start(self, *words: str, **settings: str) -> subprocess.Popen:
        environment = {"PATH": str(self.bin), "HOME": str(self.root), "CALLS": str(self.calls)}
        environment |= self.settings | settings
        command = ["bash", str(self.root / "run_all.sh"), *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        pipes["preexec_fn"] = toy_project.hear_hangups
        return subprocess.Popen(command, env=environment, cwd="/", **pipes)

    def run(self, *words: str, **settings: str) -> tuple[int, str, str]:
        process = self.start(*words, **settings)
        output, errors = process.communicate(timeout=60)
        return process.returncode, output, errors

    def installs(self) -> int:
        """How often packages were installed from the lock file."""
        return sum("-r requirements.lock" in call for call in self.pip_calls())

    def pip_calls(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


def test_an_environment_with_everything_is_used_as_it_is(machine):
    code, output, errors = machine.run("smoke", "seeds=2", "-j", "1", COMPLETE="1")
    assert code == 0, errors
    assert output.endswith(f"{machine.bin} runs -m dcopy.workflow.preset smoke seeds=2 -j 1\n")
    assert not (machine.root / ".venv").exists() and machine.installs() == 0


def test_kernels_may_keep_what_they_compile(machine):
    code, output, errors = machine.run("smoke", COMPLETE="1", PYTHONDONTWRITEBYTECODE="1")
    assert code == 0, errors
    assert output.endswith(f"\n{machine.bin} runs -m dcopy.workflow.preset smoke\n")  # no 1 before it


def test_otherwise_a_virtual_environment_is_made_once(machine):
    for _ in range(2):
        code, output, errors = machine.run("smoke")
        assert code == 0, errors
        assert output.endswith(f"{machine.root}/.venv/bin runs -m dcopy.workflow.preset smoke\n")
    assert machine.installs() == 1


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("interrupted", "its set-up was cut off"),
        ("lock changed", "requirements.lock has changed since"),
        ("package lost", "lacks torch"),
        ("python lost", "{root}/.venv/bin/python does not start, or is not Python 3.10 to 3.13"),
    ],
)
def test_an_unfinished_or_outdated_set_up_is_repaired_with_a_word(machine, damage, reason):
    machine.run("smoke")
    if damage == "python lost":
        (machine.root / ".venv/bin/python").unlink()
    if damage == "interrupted":
        (machine.root / ".venv/requirements.lock").write_text("")
    if damage == "lock changed":
        (machine.root / "requirements.lock").write_text("torch==99\n")
    if damage == "package lost":
        (machine.root / ".venv/bin/complete").unlink()
    code, output, errors = machine.run("smoke")
    assert code == 0, errors
    assert f"Making .venv anew: {reason.format(root=machine.root)}.\n" in output
    assert machine.installs() == 2


@pytest.mark.parametrize("name", ["PYTHONPATH", "PYTHONHOME"])
def test_what_hides_our_packages_is_left_out_with_a_word(machine, name):
    machine.run("smoke")
    code, output, errors = machine.run(
        "smoke", **{name: "/old", "PYTHONSTARTUP": "/old", "PYTHONSAFEPATH": "1"}
    )
    assert code == 0, errors
    assert ".venv/bin runs" in output and machine.installs() == 1  # and .venv is as it was
    if name == "PYTHONPATH":
        assert "Left out: PYTHONPATH. With it, lacks numpy.\n" in output
        code, output, errors = machine.run("smoke", COMPLETE="1", PYTHONPATH="/old")
        assert code == 0 and output.endswith(f"{machine.bin} runs -m dcopy.workflow.preset smoke\n"), errors


def test_of_pips_settings_those_of_the_network_count(machine):
    code, _, errors = machine.run("smoke", PIP_USER="1", PIP_TARGET="/elsewhere")
    assert code == 0, errors
    assert all(call.endswith("PIP_USER= PIP_INDEX_URL=of the user") for call in machine.pip_calls())


# torch for processors


@pytest.mark.skipif(
    any(Path(name).exists() for name in ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg"))
    or sys.platform != "linux",
    reason="is for Linux without an NVIDIA GPU",
)
def test_the_cpu_build_of_torch_is_fetched_where_its_index_can_be_reached(machine):
    settings = {"DCOPY_TORCH_INDEX": "", "INDEX": "1"}
    code, output, errors = machine.run("smoke", **settings)
    assert code == 0, errors
    assert "about 2 GB" in output
    torch, others, _ = machine.pip_calls()
    (lock,) = [line for line in toy_project.ROOT.joinpath("requirements.lock").read_text().splitlines()
               if line.startswith("torch==")]  # fmt: skip
    assert lock in torch and "torchvision==" in torch and "--index-url" in torch
    assert "-r .venv/others.lock" in others
    left = (machine.root / ".venv/others.lock").read_text()
    assert "numpy==" in left and "torch==" not in left and "nvidia" not in left and "triton" not in left
    machine.run("smoke", **settings)
    assert len(machine.pip_calls()) == 3


@pytest.mark.parametrize("settings", [{"INDEX": ""}, {"INDEX": "1", "NO_CPU": "1"}])
def test_where_it_cannot_be_fetched_torch_is_that_of_the_lock(machine, settings):
    code, output, errors = machine.run("smoke", DCOPY_TORCH_INDEX="", **settings)
    assert code == 0, errors
    assert "about 5 GB" in output and machine.installs() == 1


def test_another_index_is_used_also_on_a_gpu(machine):
    machine.program("nvidia-smi", "#!/usr/bin/env bash\n")
    code, output, errors = machine.run("smoke", DCOPY_TORCH_INDEX="address/cu126")
    assert code == 0, errors
    assert "about 5 GB" in output and "--index-url address/cu126 torch==" in machine.pip_calls()[0]
    machine.calls.unlink()
    (machine.root / ".venv/requirements.lock").write_text("")
    machine.run("smoke", DCOPY_TORCH_INDEX="", INDEX="1")
    assert machine.installs() == 1  # what the lock has is for GPUs


def test_a_gpu_that_comes_later_is_told(machine):
    machine.run("smoke")
    (machine.root / ".venv/lib/python3.11/site-packages/torch-9+cpu.dist-info").mkdir(parents=True)
    machine.program("nvidia-smi", "#!/usr/bin/env bash\n")
    assert "has torch for processors only" in machine.run("smoke")[1]


# other systems


def test_no_tool_needs_more_than_posix(machine):
    """As on macOS: no long options, no flock, and other tools do not exist."""
    (machine.bin / "flock").unlink(missing_ok=True)
    for name in set(TOOLS) - {"flock", "bash", "env"}:
        tool = shutil.which(name)
        refuse = 'for word in "$@"; do [[ "$word" != --* ]] || exit 64; done'
        machine.program(name, f'#!{shutil.which("bash")}\n{refuse}\nexec {tool} "$@"\n')
    code, output, errors = machine.run("smoke")
    assert code == 0 and not errors, errors
    assert ".venv/bin runs" in output


@pytest.mark.parametrize("folder", ["a:b", "run #2 {x} 'y\" \n é", "-dash"])
def test_the_checkout_may_lie_in_any_folder(tmp_path, folder):
    machine = Machine(tmp_path / folder)
    (tmp_path / "bin").symlink_to(machine.bin)
    code, output, errors = machine.run("smoke", PATH=f"{tmp_path}/bin")
    assert code == 0, errors
    assert output.endswith("/.venv/bin runs -m dcopy.workflow.preset smoke\n") and machine.installs() == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_stops_the_set_up_and_all_its_processes(machine, number):
    process = machine.start("smoke", SLOW="600")
    while not machine.calls.exists():
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)  # ends when nobody holds the pipe any more
    assert process.returncode == 128 + number
    assert errors == f"run_all.sh: stopped by {number.name}. The same command begins the set-up anew.\n"
    assert machine.run("smoke")[0] == 0


def test_a_virtual_environment_of_the_users_own_is_left_alone(machine):
    (machine.root / ".venv/bin").mkdir(parents=True)
    shutil.copy(machine.bin / "python3", machine.root / ".venv/bin/python")
    code, _, errors = machine.run("smoke")
    assert code == 1
    assert "lacks torch" in errors and "did not make this .venv and leaves it alone" in errors
    (machine.root / ".venv/bin/complete").touch()
    code, output, errors = machine.run("smoke")
    assert code == 0 and ".venv/bin runs" in output, errors
    assert machine.installs() == 0


def test_two_starts_at_the_same_moment_install_once(machine):
    if shutil.which("flock") is None:
        pytest.skip("there is no flock here")
    starts = [machine.start("smoke", SLOW="1") for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in starts]
    assert [process.returncode for process in starts] == [0, 0], outputs
    assert machine.installs() == 1
    assert sum("waiting for it" in output for output, _ in outputs) == 1


# what stands in the way: one line each, and no work


def test_no_network(machine):
    code, _, errors = machine.run("smoke", PIP="Could not find a version of torch")
    assert code == 1
    assert errors.count("\n") == 1
    assert "pip could not install" in errors and "Could not find a version of torch" in errors
    assert machine.run("smoke")[0] == 0  # once there is a network


@pytest.mark.parametrize("version", ["(3, 9)", "(3, 14)"])
def test_a_python_that_the_lock_does_not_cover(machine, version):
    code, _, errors = machine.run("smoke", VERSION=version)
    assert code == 1
    assert errors == f"run_all.sh: Python 3.10 to 3.13 is needed; python3 here is Python {version}\n"


def test_another_python_is_found_where_the_first_does_not_fit(machine):
    newest = STAND_IN.format(python=sys.executable).replace("$VERSION", "(3, 13)")
    machine.program("python3.13", newest)
    code, output, errors = machine.run("smoke", VERSION="(3, 9)")
    assert code == 0, errors
    assert "Setting up .venv with Python (3, 13)" in output


def test_a_full_disk(machine):
    machine.program("df", "#!/usr/bin/env bash\necho head; echo 'disk 100 50 3145728 60% /'\n")
    code, _, errors = machine.run("smoke")
    assert code == 1
    assert errors == f"run_all.sh: set-up needs 7 GB in {machine.root}, and 3 GB are free there\n"


def test_wrong_words_are_refused_before_set_up(machine):
    code, _, errors = machine.run("nope")
    assert code == 2 and "it must be one of smoke" in errors
    assert machine.run("smoke", "sed=3")[0] == 2
    assert not (machine.root / ".venv").exists()


@pytest.mark.parametrize("word", ["--list", "--help"])
def test_asking_needs_no_set_up(machine, word):
    code, output, _ = machine.run(word)
    assert code == 0 and {"--list": "smoke  five notebooks", "--help": "--dry-run"}[word] in output
    assert not (machine.root / ".venv").exists()


def test_test_runs_pytest_with_the_arguments_that_follow(machine):
    code, output, errors = machine.run("test", "-k", "one two", "-x", COMPLETE="1")
    assert code == 0, errors
    assert output.endswith("runs -m pytest --numprocesses 2 --dist loadfile -k one two -x\n")


def test_what_pytest_and_the_workflow_return_is_returned(machine):
    for word in ("test", "smoke"):
        assert machine.run(word, COMPLETE="1", CODE="5")[0] == 5


def test_finding_out_whether_all_is_there_imports_nothing_heavy():
    """So that a start takes no seconds; importing torch alone takes some."""
    words = ["-X", "importtime", "-m", "dcopy.workflow.environment", "notebooks", "dev"]
    answer = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=toy_project.ROOT)
    imported = {line.rpartition("|")[2].strip() for line in answer.stderr.splitlines()}
    assert "packaging.requirements" in imported
    assert not imported & {"torch", "numpy", "papermill", "snakemake"}
