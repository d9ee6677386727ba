"""Models that do not lie whole on one device: offloaded by accelerate, or sharded by FSDP2."""

import pytest
import torch
import torch.distributed as dist
from accelerate import dispatch_model
from accelerate.hooks import remove_hook_from_module
from tiny_models import adapted, make_batch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import hessian_lr as hlr

BATCHES = [make_batch(2, 9, seed) for seed in range(2)]
ON_DISK = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "cpu",
}


@pytest.fixture
def dispatched(tmp_path):
    """A tiny Llama whose second layer, its adapter included, lies on disk."""
    model = adapted("llama", torch.float32)
    dispatch_model(model.get_base_model(), ON_DISK, offload_dir=tmp_path, main_device="cpu")
    return model


@pytest.mark.parametrize("operator", ["hessian", "central-differences"])
def test_frozen_layers_on_disk_change_no_bit_of_lambda(dispatched, operator):
    for module in dispatched.modules():
        if any(p.requires_grad for p in module.parameters(recurse=False)):
            remove_hook_from_module(module)
    assert any(p.is_meta for p in dispatched.parameters())
    expected = hlr.sharpness(adapted("llama", torch.float32), BATCHES, operator=operator)
    found = hlr.sharpness(dispatched, BATCHES, operator=operator)
    assert found.lambda_max == expected.lambda_max


@pytest.mark.parametrize("operator", ["hessian", "central-differences"])
def test_an_offloaded_adapter_is_refused_with_its_mend(dispatched, operator):
    with pytest.raises(hlr.RequestError, match="remove_hook_from_module"):
        hlr.sharpness(dispatched, BATCHES, operator=operator)


def test_sharded_parameters_are_refused_with_their_mend(tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = adapted("llama", torch.float32)
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        for operator in ("hessian", "central-differences"):
            with pytest.raises(hlr.RequestError, match=r"before fully_shard\(\)"):
                hlr.sharpness(model, BATCHES, operator=operator)
    finally:
        dist.destroy_process_group()
