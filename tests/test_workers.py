"""Pinned arithmetic and the process pool: results do not depend on the processor and the number of processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from conftest import ROOT

from higgs.arithmetic import PINNED, can_pin
from higgs.workers import in_order, usable_cores

PROCESSORS = ("Haswell", "EPYC-Rome")  # of Intel and of AMD, both without AVX-512


def powers(exponent: int):
    """Loaded by a worker: a function that fails for 13, and exits for 14."""

    def power(x: int) -> tuple[int, torch.Tensor]:
        if x == 13:
            raise ValueError("thirteen")
        if x == 14:
            os._exit(1)
        return x**exponent, torch.full((2,), float(x))

    return power


def surroundings():
    backends = torch.backends
    return lambda _: (torch.get_num_threads(), backends.mkldnn.enabled, backends.cpu.get_cpu_capability(), os.getpid())


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_order_whatever_the_number_of_workers(workers):
    results = list(in_order(partial(powers, 2), range(8), workers))
    assert [number for number, _ in results] == [x * x for x in range(8)]
    assert all(torch.equal(tensor, torch.full((2,), float(x))) for x, (_, tensor) in enumerate(results))
    assert list(in_order(partial(powers, 2), [], workers)) == []


@pytest.mark.parametrize(("item", "error"), [(13, ValueError), (14, RuntimeError)])
def test_errors_and_dead_workers_are_raised_in_place_of_the_result(item, error):
    results = in_order(partial(powers, 2), [2, item, 3], 2)
    with pytest.raises(error, match="thirteen|died"):
        assert next(results)[0] == 4
        next(results)


def damaged():
    raise ValueError("codec/model.safetensors: 1 missing: decoder.bias")


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_while_a_worker_loads_is_raised_as_it_is(workers, capfd):
    with pytest.raises(ValueError, match=r"^codec/model.safetensors: 1 missing: decoder.bias$"):
        list(in_order(damaged, range(4), workers))
    assert "Traceback" not in capfd.readouterr().err


PARENT = """
import os, sys, time
sys.path[:0] = [{root!r}, {tests!r}]
from test_workers import surroundings
from higgs.arithmetic import set_arithmetic
from higgs.workers import in_order
if __name__ == "__main__":
    set_arithmetic(True)
    results = in_order(surroundings, range(40), 2)
    print(*next(results), flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not can_pin(), reason="this processor has no AVX2: nothing is pinned")
def test_workers_compute_as_their_parent_and_end_with_it(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(root=str(ROOT), tests=str(ROOT / "tests")))
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    try:
        threads, onednn, kernels, worker = parent.stdout.readline().split()
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert (threads, onednn, kernels) == ("1", "False", "AVX2") and int(worker) != parent.pid
    for _ in range(100):
        if not os.path.exists(f"/proc/{worker}"):
            return
        time.sleep(0.1)
    raise AssertionError("the worker outlives its parent")


def test_cores_are_those_that_a_container_grants(tmp_path):
    quota = tmp_path / "cpu.max"
    quota.write_text("max 100000\n")
    all_of_them = usable_cores(quota)
    assert 1 <= all_of_them == usable_cores(tmp_path / "none")
    for text, cores in (("50000 100000", 1), ("9900000 100000", all_of_them)):
        quota.write_text(text)
        assert usable_cores(quota) == cores


def hashes(*emulator: str) -> subprocess.Popen:
    command = [*emulator, sys.executable, str(ROOT / "tests" / "processors.py")]
    environment = {k: v for k, v in os.environ.items() if k not in PINNED}
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.skipif(not can_pin(), reason="this processor has no AVX2: nothing is pinned")
@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="needs qemu-x86_64 (Debian: qemu-user)")
def test_the_same_bits_on_every_processor(nano):
    """Encode, decode, 25 steps of generation, logits and every judge: here, and on two emulated processors."""
    running = {"here": hashes()} | {model: hashes("qemu-x86_64", "-cpu", model) for model in PROCESSORS}
    sums = {name: json.loads(process.communicate()[0]) for name, process in running.items()}
    for model in PROCESSORS:
        assert sums[model] == sums["here"], model
