"""What a method is built on shares the loaded model's weights where it may, and never changes them."""

import pytest
import torch
from tiny_models import ARCHITECTURES, base_model, make_batch

from hessian_lr import methods
from hessian_lr.methods import METHODS
from hessian_lr.setting import Setting


def memory(model):
    return {parameter.data_ptr() for parameter in model.parameters()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", METHODS)
def test_building_and_training_leave_the_loaded_model_as_it_was(name, architecture):
    setting = Setting(method=name, rank=2, target_modules="all-linear")
    loaded = base_model(architecture).requires_grad_(False)
    before = {key: value.clone() for key, value in loaded.state_dict().items()}
    batch = make_batch(2, 6, seed=1)
    try:
        methods.check(loaded, setting)
    except methods.registry.RequestError:
        pytest.skip("PEFT cannot put it on this architecture")
    adapted = methods.build(methods.copied(loaded, setting), setting, [batch])
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    assert not {parameter.data_ptr() for parameter in trained} & memory(loaded)
    optimizer = torch.optim.AdamW(trained, lr=0.1)
    adapted(**batch, use_cache=False).loss.backward()
    optimizer.step()
    after = loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_memory_is_shared_by_those_that_leave_the_weights_alone_and_by_no_other(name):
    loaded = base_model("llama").requires_grad_(False)
    copied = methods.copied(loaded, Setting(method=name, rank=2))
    assert memory(copied) == memory(loaded) if METHODS[name].zero_b else not memory(copied) & memory(loaded)
    # Tied before, tied after.
    assert copied.get_input_embeddings().weight is copied.get_output_embeddings().weight
