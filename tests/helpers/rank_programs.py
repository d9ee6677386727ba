"""What one rank of several runs (see ``ranks``), and the models and samples that are measured there."""

from __future__ import annotations

import importlib
import json
import math
import os
import signal
from datetime import timedelta
from pathlib import Path


def sample():
    """Five rows of unequal length in two batches, one of them padded; the last row carries no label."""
    from tiny_models import make_batch

    batches = [make_batch(2, 9, seed=1), make_batch(3, 12, seed=2, unscored=7, padding=2)]
    batches[1]["labels"][2] = -100
    return batches


def answers(everything=True):
    """What is measured of the tiny models, by whoever shares the work; floats to the last bit.

    Without ``everything`` only the Hessian with its graphs kept, and a prediction in bfloat16.
    """
    import torch
    from tiny_models import adapted, counting_batch, learned

    import hessian_lr as hlr
    from hessian_lr.curvature import HessianOperator
    from hessian_lr.curvature.closed_form import closed_form

    found = {}
    for kept, budget in (("kept", 10**12), ("rebuilt", 0))[: 1 + everything]:
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
    rows = [counting_batch(3, 1, seed) for seed in range(6)]
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32))[: 1 + everything]:
        prediction = hlr.predict_learning_rate(learned(), rows, dtype=dtype)
        found[name] = {
            "status": prediction.status,
            "lr": prediction.lr,
            "lambda_max": prediction.curvature.lambda_max,
            "lambda_preconditioned": prediction.adam.lambda_preconditioned,
            "lr_critical_start": prediction.adam.lr_critical_start,
            "matvecs": prediction.matvecs,
            "work": prediction.gradient_equivalents,
        }
    if not everything:
        return found
    gauss = hlr.sharpness(adapted(), sample(), rtol=1e-6, operator="gauss-newton")
    found["gauss-newton"] = gauss.lambda_max
    modules = hlr.module_sharpness(adapted(), sample(), rtol=1e-6)
    found["modules"] = [one.lambda_max for one in modules.modules]
    closed = closed_form(adapted(moved=False), sample())
    found["closed"] = [closed.sigma, closed.lower, closed.upper, closed.quotient]
    return found


def told(work):
    """The kind and text of what is raised."""
    try:
        work()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return None


class Interrupted(BaseException):
    """What ends a measurement half-way, on all ranks at once."""


def interrupted(out):
    """λ with its state kept by rank 0 in a folder of its own, gone on from; then with the state damaged."""
    from tiny_models import adapted

    import hessian_lr as hlr
    from hessian_lr.checkpoints import Checkpoints
    from hessian_lr.setting import Setting
    from hessian_lr.spectrum import checkpoint

    folder = Path(out, f"state-{os.environ['RANK']}")
    save, checkpoint.SHARE = checkpoint.Checkpoint.save, float("inf")

    def measured(until=None):
        def counted(self, basis, t, following):
            save(self, basis, t, following)
            if len(t.alphas) == until:
                raise Interrupted

        checkpoint.Checkpoint.save = counted
        kept = Checkpoints(folder, Setting())
        try:
            curvature = hlr.sharpness(adapted(), sample(), rtol=1e-6, checkpoints=kept)
        except Interrupted:
            return sorted(path.name for path in folder.rglob("*.*"))
        kept.clear()
        return [curvature.lambda_max, curvature.residual, curvature.matvecs, list(kept.notes)]

    found = {"whole": measured(), "files": measured(4), "resumed": measured(), "again": measured(4)}
    for path in folder.rglob("*.bin"):
        path.write_bytes(path.read_bytes()[:-1])
    return found | {"damaged": measured()}


def measure(out):
    """All of it by two ranks and by three; then what is refused, and a failure on one rank."""
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
    if rank == 2:
        found["alone"] = answers(everything=False)
    if rank < 2:
        with across_ranks(two):
            found["2"] = answers(everything=False)
    with across_ranks() as team:
        found["3"] = answers()
        found["interrupted"] = interrupted(out)
        found["shares"] = team.share([5, 4, 3, 3, 1])
        found["other sample"] = told(lambda: hlr.sharpness(adapted(), [make_batch(2, 9, seed=rank // 2)]))
        operator = HessianOperator(adapted(), sample())
        found["other vector"] = told(lambda: operator.matvec(torch.full((operator.size,), 1.0 + (rank == 1))))
        found |= {f"other {what}": told(work) for what, work in other_on_the_last(rank == 2).items()}
        model = adapted()
        if rank == 1:
            model.get_output_embeddings().register_forward_hook(lambda _module, _inputs, out: out * math.nan)
        failed = hlr.sharpness(model, sample())
        found["failure"] = [failed.status, failed.lambda_max, *failed.notes]
        found["after it"] = hlr.sharpness(adapted(), sample(), rtol=1e-6).lambda_max
    Path(out, f"{rank}.json").write_text(json.dumps(found))


def densities(out):
    """The density where ranks differ in what they may keep, and in what memory they have free."""
    import torch.distributed as dist
    from tiny_models import adapted

    import hessian_lr as hlr
    from hessian_lr.curvature import HessianOperator
    from hessian_lr.curvature.plan import Plan
    from hessian_lr.distributed import across_ranks
    from hessian_lr.measure import distribution

    # Ranks that wait for different things are to end soon.
    dist.init_process_group("gloo", timeout=timedelta(seconds=20))
    rank, widths = dist.get_rank(), []

    class Watched(HessianOperator):
        def matmat(self, block):
            widths.append(block.shape[1])
            return super().matmat(block)

    distribution.OPERATORS["hessian"] = Watched
    Plan.largest = property(lambda _: 0)
    model, found = adapted(), {}
    bases = 2 * 3 * 8 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    plenty = 10**12
    for name, budgets, free in (
        ("first keeps none", (0, plenty), (plenty, plenty)),
        ("second keeps none", (plenty, 0), (plenty, plenty)),
        ("all kept", (plenty, plenty), (plenty, plenty)),
        ("first lacks room", (0, 0), (0, plenty)),
        ("second lacks room", (0, 0), (plenty, 0)),
        # Both in the same main memory, of which a quarter is for the bases of both.
        ("room for both", (0, 0), (8 * bases, 8 * bases)),
        ("room for one", (0, 0), (8 * bases - 1, 8 * bases - 1)),
    ):
        distribution.free_memory = lambda _, free=free: free[rank]
        widths.clear()
        with across_ranks():
            one = hlr.density(model, sample(), probes=2, steps=3, memory_budget=budgets[rank])
        found[name] = [list(widths), one.trace, one.nodes]
    Path(out, f"{rank}.json").write_text(json.dumps(found))


def other_on_the_last(other):
    """Measurements of what is not the same on one rank, by what that is."""
    import torch
    from tiny_models import adapted

    import hessian_lr as hlr

    def measured(measure=hlr.sharpness, change=None, **more):
        model = adapted()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if change is not None and other:
                    change(name, parameter)
        return measure(model, sample(), **more)

    def trained(name, parameter):
        if parameter.requires_grad:
            parameter.mul_(2.0)

    def frozen(name, parameter):
        if "wte" in name:
            parameter.view(-1)[0] += 0.5

    def rescaled():
        model = adapted()
        for module in model.modules():
            if other and hasattr(module, "scaling") and hasattr(module, "lora_A"):
                module.scaling["default"] *= 4
        return hlr.sharpness(model, sample())

    def fewer(name, parameter):
        if "lora_A" in name:
            parameter.requires_grad_(False)

    def warmed_up():
        rows = sample()
        return hlr.predict_learning_rate(
            adapted(), rows, warmup_batches=rows[::-1] if other else rows, predictor="adam", steps=30
        )

    return {
        "warm-up": warmed_up,
        "adapter": lambda: measured(change=trained),
        "adapter by modules": lambda: measured(hlr.module_sharpness, trained),
        "base": lambda: measured(change=frozen),
        "scaling": rescaled,
        "number": lambda: measured(change=fewer),
        "operator": lambda: measured(operator="gauss-newton" if other else "hessian"),
        "dtype": lambda: measured(dtype=torch.float64 if other else torch.float32),
    }


def in_pieces(model, how="layers"):
    """A tiny Llama in pieces on all ranks: layer by layer and the rest, as one, or all but the adapter.

    ``checkpointed`` and ``bfloat16``: as by layers, with gradient checkpointing or computing in that.
    """
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    adapter = {p for p in model.parameters() if p.requires_grad}
    more = {"ignored_params": adapter} if how == "base" else {}
    if how == "checkpointed":
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
        model.train()
    if how == "bfloat16":
        more = {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16)}
    if how != "root":
        for layer in model.get_base_model().model.layers:
            fully_shard(layer, **more)
    fully_shard(model, **more)
    return model


def with_narrow_base():
    """A tiny Llama whose frozen weights are bfloat16, under an adapter in float32."""
    import torch
    from tiny_models import adapted

    model = adapted("llama", torch.float32)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    return model


def measure_in_pieces(out):
    """λ of models in pieces; by two ranks also a prediction, and what is refused."""
    import torch
    import torch.distributed as dist
    from tiny_models import adapted, counting_batch, learned

    import hessian_lr as hlr
    from hessian_lr.checkpoints import Checkpoints
    from hessian_lr.distributed import across_ranks, whole
    from hessian_lr.methods import METHODS
    from hessian_lr.setting import Setting

    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    rows = [counting_batch(3, 1, seed) for seed in range(6)]

    def sharpness(how, sample=None, **more):
        return hlr.sharpness(in_pieces(adapted("llama"), how), sample or globals()["sample"](), **more)

    def predict():
        model = in_pieces(learned().double(), "root")
        with torch.no_grad():
            model(rows[0]["input_ids"])  # after which all weights stay gathered
        before = [whole(p.detach()).clone() for p in model.parameters()]
        prediction = hlr.predict_learning_rate(model, rows, predictor="adam", dtype=torch.float64)
        same = all(torch.equal(a, whole(b.detach())) for a, b in zip(before, model.parameters(), strict=True))
        return {
            "same": same and all(p.grad is None for p in model.parameters()),
            "lr": prediction.lr,
            "lambda_preconditioned": prediction.adam.lambda_preconditioned,
            "lr_critical_start": prediction.adam.lr_critical_start,
        }

    found = {}
    with across_ranks(sharded=True):
        for how in ("layers", "root", "base", "checkpointed") if size == 2 else ("layers",):
            # A state that is kept changes nothing.
            kept = (
                {"checkpoints": Checkpoints(Path(out, f"state-{rank}"), Setting())} if how == "root" else {}
            )
            one = sharpness(how, rtol=1e-3, dtype=torch.float64, held_out=sample(), **kept)
            names = ("lambda_max", "lambda_upper", "sampling_error", "held_out", "loss", "matvecs", "notes")
            found[how] = {name: getattr(one, name) for name in (*names, "difference_error")}
        if size == 2:
            found["prediction"] = predict()
            rough = hlr.sharpness(in_pieces(with_narrow_base()), sample())
            found["narrow base"] = [rough.status, rough.lambda_max, rough.difference_error]
            found["other sample"] = told(lambda: sharpness("layers", rows[rank:]))
            found["bfloat16"] = told(lambda: sharpness("bfloat16"))
            found["modules"] = told(lambda: hlr.module_sharpness(in_pieces(adapted("llama")), sample()))
            found["whole"] = told(lambda: hlr.sharpness(adapted("llama"), sample()))
            loft = METHODS["loft"].optimizer
            found["loft"] = told(
                lambda: hlr.predict_learning_rate(in_pieces(learned()), rows, optimizer=loft)
            )
    if size == 2:
        found["outside"] = told(lambda: sharpness("layers"))
        with across_ranks():
            found["shares"] = told(lambda: sharpness("layers"))
            found["other number"] = told(lambda: hlr.sharpness(adapted("llama"), rows[rank:]))
    else:
        model, two = in_pieces(adapted("llama")), dist.new_group([0, 1])
        if rank < 2:
            with across_ranks(two, sharded=True):
                found["fewer"] = told(lambda: hlr.sharpness(model, sample()))
    Path(out, f"{rank}.json").write_text(json.dumps(found))
    # What is refused takes no word from the others: rank 0, who keeps the group's store, must not go first.
    dist.barrier()


def command(trouble, *arguments):
    """The command line, with some trouble on rank 1 in its third product."""
    from hessian_lr.cli import main

    module = importlib.import_module("hessian_lr.spectrum.lanczos")  # the package has a function of that name
    original, products = module.Basis.append, []

    def append(basis, vector):
        products.append(vector)
        if os.environ["RANK"] == "1" and len(products) == 3:
            _TROUBLES[trouble]()
        original(basis, vector)

    module.Basis.append = append
    return main(list(arguments))


def _out_of_memory():
    raise MemoryError


def _mistake():
    raise IndexError("list index out of range")


_TROUBLES = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "terminated": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "memory": _out_of_memory,
    "mistake": _mistake,
}
