"""Programs of several processes for the tests: ``start`` runs one; what stands below it is one rank."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__)
SIZE = 3


def start(size, *arguments, **environment):
    """Run ``python ranks.py arguments`` as so many ranks; (exit status, standard output, error) of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE.parents[1])]),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, str(HERE), *map(str, arguments)],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        said = [one.communicate(timeout=250) for one in ranks]
    finally:
        for one in ranks:
            one.kill()
    return [(one.returncode, *streams) for one, streams in zip(ranks, said, strict=True)]


def sample():
    """Five rows of unequal length in two batches, one of them padded; the last row carries no label."""
    from tiny_models import make_batch

    batches = [make_batch(2, 9, seed=1), make_batch(3, 12, seed=2, unscored=7, padding=2)]
    batches[1]["labels"][2] = -100
    return batches


def answers(everything=True):
    """What is measured of the tiny models, by whoever shares the work; floats to the last bit."""
    import torch
    from tiny_models import adapted, counting_batch, learned

    import hessian_lr as hlr
    from hessian_lr.curvature import HessianOperator
    from hessian_lr.curvature.closed_form import closed_form

    found = {}
    for kept, budget in (("kept", 10**12), ("rebuilt", 0)):
        operator = HessianOperator(adapted(), sample(), memory_budget=budget)
        vector = torch.ones(operator.size, dtype=torch.float64)
        found[kept] = {
            "product": operator.matvec(vector).tolist(),
            "block": operator.matmat(torch.stack([vector, vector.cumsum(0)], 1))[:, 1].tolist(),
            "forms": operator.batch_forms,
            "gradient": operator.gradient().tolist(),
            "loss": operator.loss,
            "work": operator.cost.gradient_equivalents,
            "mine": operator.kept,
        }
        curvature = hlr.sharpness(adapted(), sample(), held_out=sample(), rtol=1e-6, memory_budget=budget)
        found[kept] |= {
            name: getattr(curvature, name)
            for name in ("lambda_max", "lambda_upper", "lambda_min", "sampling_error", "held_out")
        }
        found[kept]["cost"] = curvature.gradient_equivalents
    if not everything:
        return found
    gauss = hlr.sharpness(adapted(), sample(), rtol=1e-6, operator="gauss-newton")
    found["gauss-newton"] = gauss.lambda_max
    modules = hlr.module_sharpness(adapted(), sample(), rtol=1e-6)
    found["modules"] = [one.lambda_max for one in modules.modules]
    closed = closed_form(adapted(moved=False), sample())
    found["closed"] = [closed.sigma, closed.lower, closed.upper, closed.quotient]
    rows = [counting_batch(3, 1, seed) for seed in range(6)]
    prediction = hlr.predict_learning_rate(learned(), rows)
    found["lr"], found["lr_cost"] = prediction.lr, prediction.gradient_equivalents
    return found


def told(work):
    """The kind and text of what is raised."""
    try:
        work()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return None


def measure(out):
    """All of it alone, by two ranks and by three; then what is refused, and a failure on one rank."""
    import torch
    import torch.distributed as dist
    from tiny_models import adapted, make_batch

    import hessian_lr as hlr
    from hessian_lr.curvature import HessianOperator
    from hessian_lr.distributed import across_ranks

    def share():
        with across_ranks():
            pass

    rank = int(os.environ["RANK"])
    found = {"no group": told(share)}
    dist.init_process_group("gloo")
    two = dist.new_group([0, 1])
    found["1"] = answers()
    if rank < 2:
        with across_ranks(two):
            found["2"] = answers(everything=False)
    with across_ranks() as team:
        found["3"] = answers()
        found["shares"] = team.share([5, 4, 3, 3, 1])
        found["other sample"] = told(lambda: hlr.sharpness(adapted(), [make_batch(2, 9, seed=rank // 2)]))
        operator = HessianOperator(adapted(), sample())
        found["other vector"] = told(lambda: operator.matvec(torch.full((operator.size,), 1.0 + (rank == 1))))
        model = adapted()
        if rank == 1:
            with torch.no_grad():
                next(p for p in model.parameters() if not p.requires_grad).fill_(float("nan"))
        failed = hlr.sharpness(model, sample())
        found["failure"] = [failed.status, failed.lambda_max, *failed.notes]
        found["after it"] = hlr.sharpness(adapted(), sample(), rtol=1e-6).lambda_max
    Path(out, f"{rank}.json").write_text(json.dumps(found))


def command(trouble, *arguments):
    """The command line, with some trouble on rank 1 in its third product."""
    from hessian_lr.cli import main

    module = importlib.import_module("hessian_lr.spectrum.lanczos")  # the package has a function of that name
    original, products = module.Basis.append, []

    def append(basis, vector):
        products.append(vector)
        if os.environ["RANK"] == "1" and len(products) == 3:
            if trouble == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            elif trouble == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            elif trouble == "memory":
                raise MemoryError
        original(basis, vector)

    module.Basis.append = append
    return main(list(arguments))


if __name__ == "__main__":
    sys.exit(measure(sys.argv[2]) if sys.argv[1] == "measure" else command(*sys.argv[1:]))
