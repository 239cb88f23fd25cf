"""Devices and precisions: what users type, what machines lack, and one line where it cannot be."""

import os

import pytest
import torch
from helpers.tiny import tiny_config

from dcopy import hardware, results
from dcopy.__main__ import main
from dcopy.bench import bench
from dcopy.training.loop import pretrain

NO_DRIVER = "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU"
OLD_DRIVER = (
    "The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver by "
    "downloading and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)
NO_KERNEL = (
    "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might be "
    "asynchronously reported at some other API call, so the stacktrace below might be incorrect.\n"
)


try_it = hardware._try


@pytest.fixture
def machine(monkeypatch):
    """A function that makes this machine one with these GPUs, as far as torch's answers go.

    Args of the function: names of the NVIDIA GPUs that torch finds; whether it finds Apple's; capability of
    the former; what CUDA says at its start where it finds none; flags of the processor.
    """
    monkeypatch.delenv("DCOPY_DEVICE", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def make(*gpus, apple=False, capability=(9, 0), says=NO_DRIVER, flags="fpu avx2", nvidia=False):
        def start():
            raise (AssertionError if "not compiled" in says else RuntimeError)(says)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
        monkeypatch.setattr(torch.cuda, "init", start)
        monkeypatch.setattr(
            torch.cuda, "get_device_name", lambda device: gpus[torch.device(device).index or 0]
        )
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)
        monkeypatch.setattr(hardware, "_try", lambda device: None)
        monkeypatch.setattr(hardware, "_cpuinfo", lambda key: flags if key == "flags" else "A Processor")
        monkeypatch.setattr(os.path, "exists", lambda path: nvidia and path == "/dev/nvidia0")

    return make


def chosen(word):
    return str(hardware.choose(word)[0])


# words


@pytest.mark.parametrize(
    ("word", "device"),
    [
        *((None, "cuda"), ("auto", "cuda"), ("gpu", "cuda"), ("GPU", "cuda"), ("cuda", "cuda")),
        *((" cuda ", "cuda"), ("0", "cuda:0"), (1, "cuda:1"), ("1", "cuda:1"), ("cuda:1", "cuda:1")),
        *(("gpu:1", "cuda:1"), ("CUDA:0", "cuda:0"), ("cuda1", "cuda:1"), ("gpu 0", "cuda:0")),
        *(("cpu", "cpu"), ("CPU", "cpu"), ("cpu:0", "cpu")),
        *((torch.device("cuda", 1), "cuda:1"), (torch.device("cpu"), "cpu")),
    ],
)
def test_what_users_type_is_a_device(word, device, machine):
    machine("H100", "H100")
    assert chosen(word) == device


@pytest.mark.parametrize("word", [None, "auto", "gpu", "mps", "MPS", 0, "0", "mps:0"])
def test_apples_gpu_is_one_where_torch_has_it(word, machine):
    machine(apple=True)
    assert chosen(word).removesuffix(":0") == "mps"
    assert chosen("cpu") == "cpu"


ABSENT = ("gpu", "cuda", "cuda:0", "mps", "0", 0, "gpu:3", "xpu", "tpu", "cuda:0,1", "-1", "", "2.5")


@pytest.mark.parametrize("word", ABSENT)
def test_a_device_that_is_not_there_is_one_line_with_those_that_are(word, machine):
    machine()
    with pytest.raises(ValueError) as refusal:
        hardware.choose(word)
    allowed = "it must be one of cpu, auto, since torch finds no GPU here"
    assert str(refusal.value) == f"device={str(word)!r} is not allowed; {allowed}"
    machine("H100", "H100")
    with pytest.raises(ValueError, match=r"'7' is not allowed; it must be one of cuda:0, cuda:1, cpu, auto$"):
        hardware.choose(7)


def test_the_environment_says_where_for_what_has_no_option(machine, monkeypatch):
    machine("H100", "H100")
    monkeypatch.setenv("DCOPY_DEVICE", "cuda:1")
    assert (chosen(None), chosen("cpu")) == ("cuda:1", "cpu")
    monkeypatch.setenv("DCOPY_DEVICE", "tpu")
    with pytest.raises(ValueError, match="device='tpu' is not allowed"):
        hardware.choose()
    monkeypatch.setenv("DCOPY_DEVICE", "")
    assert chosen(None) == "cuda"


def test_commands_and_functions_ask_the_same(machine, tmp_path, capsys):
    machine()
    words = ["epochs=1", "--out-dir", str(tmp_path), "--device", "gpu"]
    assert main(words) == 2
    assert bench.main(["--device", "gpu"]) == 2
    line = "error: device='gpu' is not allowed; it must be one of cpu, auto, since torch finds no GPU here\n"
    assert capsys.readouterr().err == 2 * line
    with pytest.raises(ValueError, match="since torch finds no GPU here"):
        pretrain(tiny_config(), tmp_path, device="gpu")
    assert not list(tmp_path.iterdir())


# GPUs that cannot be used


@pytest.mark.parametrize("word", [None, "auto", "gpu", "cuda"])
@pytest.mark.parametrize(
    ("says", "reason"),
    [
        (OLD_DRIVER, "The NVIDIA driver on your system is too old (found version 12040)"),
        ("CUDA unknown error - this may be due to an incorrectly set up environment", "CUDA unknown error"),
        ("Unexpected error from cudaGetDeviceCount(). Did you", "Unexpected error from cudaGetDeviceCount()"),
        ("Torch not compiled with CUDA enabled", "Torch not compiled with CUDA enabled"),
        (NO_DRIVER, "Found no NVIDIA driver on your system"),
    ],
)
def test_a_gpu_out_of_reach_is_one_line_and_no_silent_processor(says, reason, word, machine):
    machine(says=says, nvidia=True)
    with pytest.raises(ValueError) as refusal:
        hardware.choose(word)
    told = str(refusal.value)
    assert told.startswith(f"device={str(word or 'auto')!r} is not possible: {reason}") and "\n" not in told
    assert told.endswith("; install one that fits driver and GPU, " + hardware.WAY_OUT)
    assert chosen("cpu") == "cpu"


def test_a_gpu_too_old_for_the_kernels_of_torch_is_one_line(machine, monkeypatch):
    machine("GTX 1080", capability=(6, 1))
    monkeypatch.setattr(hardware, "_try", try_it)

    def ones(*args, device):
        raise RuntimeError(NO_KERNEL)

    monkeypatch.setattr(torch, "ones", ones)
    for word in (None, "gpu", "cuda:0"):
        with pytest.raises(ValueError) as refusal:
            hardware.choose(word)
        told = str(refusal.value)
        assert "CUDA error: no kernel image is available for execution on the device (GTX 1080)" in told
        assert "(sm_75 sm_90); install one that fits" in told and "\n" not in told


def test_where_no_gpu_is_none_is_missed(machine, monkeypatch):
    machine()
    assert chosen(None) == "cpu"
    machine(says="No CUDA GPUs are available", nvidia=True)
    for hidden in ("", "-1", "NoDevFiles"):  # the last one is what Slurm says to jobs without a GPU
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert chosen(None) == "cpu"


def test_a_gpu_that_was_named_and_is_not_there_is_missed(machine, monkeypatch):
    machine(says="No CUDA GPUs are available")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES=7 names no GPU of this machine"):
        hardware.choose()


@pytest.mark.parametrize("says", [OLD_DRIVER, NO_DRIVER])
def test_a_notebook_says_what_it_runs_on_or_why_not(says, machine, capsys):
    machine(says=says)
    results.print_environment()
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("device: "))
    processor = f"A Processor, {torch.get_num_threads()} threads; precision=auto is fp32"
    expected = "device='auto' is not possible: The NVIDIA driver" if says == OLD_DRIVER else processor
    assert line.startswith(f"device: {expected}")


# precision

MACHINES = {  # device, what the machine is, what auto is there
    "an H100": ("cuda", {"capability": (9, 0)}, "bf16"),
    "an A100": ("cuda", {"capability": (8, 0)}, "bf16"),
    "a T4": ("cuda", {"capability": (7, 5)}, "fp16"),
    "a P100": ("cuda", {"capability": (6, 0)}, "fp16"),
    "a processor with AVX-512 BF16": ("cpu", {"flags": "fpu avx512f avx512_bf16"}, "bf16"),
    "a processor with AMX": ("cpu", {"flags": "fpu amx_tile amx_bf16"}, "bf16"),
    "a processor with AVX-512": ("cpu", {"flags": "fpu avx512f avx512_vnni"}, "fp32"),
    "a processor that says nothing": ("cpu", {"flags": ""}, "fp32"),
    "a Mac": ("mps", {"apple": True}, "fp32"),
}


@pytest.mark.parametrize(("device", "kind", "best"), MACHINES.values(), ids=MACHINES)
def test_auto_is_what_the_hardware_has(device, kind, best, machine, monkeypatch):
    machine(*["GPU"] * (device == "cuda"), **kind)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)  # as it says where it emulates
    assert hardware.choose(device, "auto")[1] == best
    for precision in ("fp32", "bf16"):
        assert hardware.choose(device, precision)[1] == precision
        hint = "" if precision == best else f" (precision=auto would take {best} here)"
        assert hardware.describe(device, precision).endswith(f", {precision}{hint}")


def test_apples_gpu_has_no_scaled_loss(machine):
    machine(apple=True)
    with pytest.raises(ValueError, match="'fp16' is not possible on mps; it must be one of auto, fp32, bf16"):
        hardware.choose("mps", "fp16")
