"""Models that do not lie whole on one device: offloaded by accelerate (sharded ones: test_sharded)."""

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import remove_hook_from_module
from tiny_models import adapted, make_batch

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
