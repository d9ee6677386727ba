"""A process that has imported everything once and forks for each command line: a start costs milliseconds.

Reads a job a line from standard input, answers with the child's id and, when it has ended, its status.
The faults that must come from inside the process are put in here, after the fork: the product's own code
and its command line stay as they are.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from typing import Any

NOBODY = 65534
MIB = 1 << 20


def serve(warm_up: list[str]) -> None:
    import torch

    from hessian_lr import cli

    torch.set_num_threads(1)
    # What is imported only when it is needed; and no thread may be left that a fork would lose.
    protocol = os.fdopen(os.dup(1), "w")
    _redirect(os.devnull, os.devnull)
    cli.main(warm_up)
    _answer(protocol, {"ready": True})
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(job)
        _answer(protocol, {"pid": child})
        _, status = os.waitpid(child, 0)
        _answer(protocol, {"status": os.waitstatus_to_exitcode(status)})


def _answer(protocol: Any, value: dict[str, Any]) -> None:
    protocol.write(json.dumps(value) + "\n")
    protocol.flush()


def _redirect(out: str, errors: str) -> None:
    for descriptor, path in ((1, out), (2, errors)):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(handle, descriptor)
        os.close(handle)


def _run(job: dict[str, Any]) -> None:
    from hessian_lr import cli

    status = 99
    try:
        _redirect(job["stdout"], job["stderr"])
        open(job["begun"], "w").close()
        for name, value in job["faults"].items():
            FAULTS[name](value)
        status = cli.main(job["arguments"])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def inside(folder: str) -> None:
    """The command is given in this folder."""
    os.chdir(folder)


def hub_gone(_: Any) -> None:
    """Nobody answers where the hub was."""
    from huggingface_hub import constants

    constants.ENDPOINT = "http://127.0.0.1:9"


def keep_state_always(_: Any) -> None:
    """Lanczos's state after every product: a tiny model's take less time than any disk."""
    from hessian_lr.spectrum import checkpoint

    checkpoint.SHARE = float("inf")


def without_figures(_: Any) -> None:
    """They are drawn when everything else is written, and take most of a tiny validate's time."""
    from hessian_lr.study import validating

    validating._draw = lambda *_: None


def die_at_write(event: int) -> None:
    """kill -9 at the n-th of the moments around a write: before its flush, before and after its renaming."""
    left = [event]

    def tick() -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    flush, replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        tick()
        flush(handle)

    def renamed(*arguments: Any, **more: Any) -> None:
        tick()
        replace(*arguments, **more)
        tick()

    os.fsync, os.replace = fsync, renamed


def file_limit(size: int) -> None:
    """No file may grow beyond so many bytes: how a disk that fills looks in the middle of a write."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def memory_limit(more: float) -> None:
    """So many MiB beyond what the process has now."""
    with open("/proc/self/statm") as pages:
        now = int(pages.read().split()[0]) * resource.getpagesize()
    limit = now + int(more * MIB)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def as_nobody(_: Any) -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def clock_backwards(step: float) -> None:
    """Each look at the wall clock finds it earlier than the last."""
    now = [time.time()]

    def earlier() -> float:
        now[0] -= step
        return now[0]

    time.time = earlier
    time.time_ns = lambda: int(earlier() * 1e9)


def bad_gradient(how: dict[str, Any]) -> None:
    """From the n-th gradient of a measurement on, one entry is NaN or infinite."""
    import torch

    real, left = torch.autograd.grad, [how["at"]]

    def grad(*arguments: Any, **more: Any) -> Any:
        found = list(real(*arguments, **more))
        left[0] -= 1
        if left[0] < 0:
            first = next(i for i, one in enumerate(found) if one is not None and one.numel())
            found[first] = found[first].clone()
            found[first].view(-1)[0] = float(how["value"])
        return tuple(found)

    torch.autograd.grad = grad


def bad_training_gradient(how: dict[str, Any]) -> None:
    """At the n-th step of training, and after, a gradient's entry is NaN or infinite."""
    import torch

    real, left = torch.optim.AdamW.step, [how["at"]]

    def step(self: Any, *arguments: Any, **more: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.grad.view(-1)[0] = float(how["value"])
        return real(self, *arguments, **more)

    torch.optim.AdamW.step = step


def bad_loss(how: dict[str, Any]) -> None:
    """From the n-th forward pass on, the model's outputs are NaN or infinite."""
    from transformers import LlamaForCausalLM

    real, left = LlamaForCausalLM.forward, [how["at"]]

    def forward(self: Any, *arguments: Any, **more: Any) -> Any:
        found = real(self, *arguments, **more)
        left[0] -= 1
        if left[0] < 0:
            found.logits = found.logits * float(how["value"])
            if found.loss is not None:
                found.loss = found.loss * float(how["value"])
        return found

    LlamaForCausalLM.forward = forward


FAULTS = {
    one.__name__: one
    for one in (
        *(
            keep_state_always,
            without_figures,
            die_at_write,
            file_limit,
            memory_limit,
            as_nobody,
            clock_backwards,
        ),
        *(bad_gradient, bad_training_gradient, bad_loss, inside, hub_gone),
    )
}

if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
