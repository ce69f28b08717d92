"""Processes of this machine: which place they are of, and which still run."""

import os
import subprocess
import sys

from droptune.processes import exists, place


def test_a_process_exists_until_it_has_ended():
    assert exists(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert exists(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not exists(child.pid), "it has ended, though its parent has not asked for it"
    child.wait()
    child.stdin.close()
    assert not exists(child.pid)


def test_all_processes_of_a_machine_are_of_one_place():
    code = "from droptune.processes import place; print(place())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == place()
