"""The loss that is measured is the one that is trained: where it would not be, the request is refused."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from peft import AdaLoraConfig, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from tiny_models import (
    VOCABULARY,
    adapted,
    base_model,
    counting_batch,
    dense_hessian,
    learned,
    make_batch,
    with_adapter,
)
from tolerances import DEFAULT_LAMBDA, RTOL_TIGHT, SAME_LAMBDA, SAME_LOSS
from transformers import MixtralConfig, OPTConfig, T5Config

import hessian_lr as hlr
from hessian_lr.curvature import HessianOperator
from hessian_lr.errors import NotTwiceDifferentiable, RequestError
from hessian_lr.measure.warmup import warm_up

BATCHES = [make_batch(4, 12, 1)]
SAMPLE = [counting_batch(4, 3, seed=s) for s in range(8)]


def test_labels_on_masked_tokens_count_as_in_the_models_own_loss():
    batch = make_batch(3, 12, 5, unscored=0, padding=4)
    batch["labels"] = batch["input_ids"].clone()
    model = adapted("llama")
    found = hlr.sharpness(model, [batch], rtol=RTOL_TIGHT, max_products=300, dtype=torch.float64)
    assert found.loss == pytest.approx(float(model(**batch).loss.detach()), rel=SAME_LOSS)
    truth = float(torch.linalg.eigvalsh(dense_hessian(model, [batch]))[-1])
    assert found.lambda_max == pytest.approx(truth, rel=SAME_LAMBDA)


def _t5():
    shape = {"d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 1, "num_heads": 2}
    model = transformers.T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, **shape))
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q"], task_type="SEQ_2_SEQ_LM"))


def _prompt():
    return get_peft_model(
        base_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )


def _disabled():
    model = adapted("llama", torch.float32)
    model.base_model.disable_adapter_layers()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return model


def _classifier():
    config = base_model("llama").config
    model = transformers.LlamaForTokenClassification(config)
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="TOKEN_CLS"))


def _bert(kind, **more):
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    model = kind(transformers.BertConfig(vocab_size=VOCABULARY, **shape, **more))
    return get_peft_model(model.eval(), LoraConfig(r=2, target_modules=["query"]))


def _headless():
    model = transformers.LlamaModel(base_model("llama").config)
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))


MODELS = {
    "a class a token": (_classifier, "LlamaForTokenClassification does not predict the next token"),
    "a class a token, compiled": (
        lambda: torch.compile(_classifier().get_base_model(), backend="eager"),
        "LlamaForTokenClassification does not predict the next token",
    ),
    "masked tokens": (
        lambda: _bert(transformers.BertForMaskedLM),
        "BertForMaskedLM does not predict the next token",
    ),
    "both ways": (
        lambda: _bert(transformers.BertLMHeadModel),
        "BertLMHeadModel sees the tokens it is to predict",
    ),
    "no head": (_headless, "LlamaModel gives a .* without logits.* load it with AutoModelForCausalLM"),
    "a name": (lambda: "gpt2", "must be a torch module with an adapter, not str"),
    "encoder and decoder": (_t5, "an encoder and a decoder"),
    "prompt tuning": (_prompt, "PROMPT_TUNING puts tokens of its own before each row"),
    "disabled adapter": (_disabled, "is the adapter disabled"),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_whose_loss_is_another_are_refused(name):
    made, said = MODELS[name]
    with pytest.raises(RequestError, match=said):
        hlr.sharpness(made(), BATCHES)


def test_a_bert_that_looks_back_only_is_measured():
    model = _bert(transformers.BertLMHeadModel, is_decoder=True)
    found = hlr.sharpness(model, BATCHES)
    assert found.loss == pytest.approx(float(model(**BATCHES[0]).loss.detach()), rel=SAME_LOSS)


def test_inference_mode_is_named():
    with torch.inference_mode(), pytest.raises(RequestError, match="inference_mode"):
        hlr.sharpness(adapted("llama", torch.float32), BATCHES)


def test_prefix_tuning_moves_no_label():
    model = get_peft_model(
        base_model("llama"), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    found = hlr.sharpness(model, BATCHES)
    assert found.loss == pytest.approx(float(model(**BATCHES[0]).loss.detach()), rel=SAME_LOSS)


WRONG = {
    "one batch": (BATCHES[0], r"write \[batch\]"),
    "a loader": (iter(BATCHES), r"write list\(loader\)"),
    "none": ([], "there are no batches"),
    "tuples": (
        [tuple(BATCHES[0].values())],
        r"must be a dictionary of tensors .* not a tuple",
    ),
    "no labels": ([{"input_ids": BATCHES[0]["input_ids"]}], "a batch has no 'labels'; it has input_ids"),
    "a number": ([BATCHES[0] | {"num_items_in_batch": 36}], "'num_items_in_batch' of a batch is a int"),
    "labels of -1": (
        [BATCHES[0] | {"labels": BATCHES[0]["labels"].where(BATCHES[0]["labels"] != -100, -1)}],
        "-1 is no label: it is -100 that marks tokens which are not scored",
    ),
    "labels in float32": (
        [BATCHES[0] | {"labels": BATCHES[0]["labels"].float()}],
        "labels are token ids, and these are torch.float32",
    ),
    "a label a row": (
        [BATCHES[0] | {"labels": torch.zeros(4, dtype=torch.long)}],
        r"one entry a token, \(rows, tokens\), and not the shape \(4,\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_batches_that_are_none_are_named(name):
    batches, said = WRONG[name]
    with pytest.raises(RequestError, match=said):
        hlr.sharpness(adapted("llama", torch.float32), batches)
    with pytest.raises(RequestError, match=said):
        hlr.predict_learning_rate(adapted("llama", torch.float32), batches)


@pytest.mark.parametrize("name", [name for name in WRONG if name != "none"])
def test_held_out_batches_that_are_none_are_named_before_any_product(name):
    batches, said = WRONG[name]
    told = []
    with pytest.raises(RequestError, match=said):
        hlr.sharpness(
            adapted("llama", torch.float32),
            BATCHES,
            held_out=batches,
            progress=lambda *state: told.append(state),
        )
    assert not told


def test_labels_beyond_the_vocabulary_are_named():
    batch = BATCHES[0] | {"labels": BATCHES[0]["labels"].where(BATCHES[0]["labels"] != -100, VOCABULARY)}
    for operator in ("hessian", "central-differences"):
        with pytest.raises(RequestError, match=f"{VOCABULARY} is no label of a model with"):
            hlr.sharpness(adapted("llama", torch.float32), [batch], operator=operator)


@pytest.mark.parametrize("seed", [None, 1.5, -1])
def test_seeds_that_are_none_are_named(seed):
    model, said = adapted("llama", torch.float32), "seed must be a whole number of at least 0, not "
    for call in (hlr.sharpness, hlr.module_sharpness, hlr.predict_learning_rate):
        with pytest.raises(RequestError, match=said):
            call(model, BATCHES, seed=seed)
    with pytest.raises(RequestError, match=said):
        hlr.SharpnessTracker(BATCHES, seed=seed)


def test_a_type_in_words_is_named():
    with pytest.raises(RequestError, match=r"dtype must be a type of torch's, .* not 'bfloat16'"):
        hlr.sharpness(adapted("llama", torch.float32), BATCHES, dtype="bfloat16")


def test_products_are_not_had_in_a_type_that_is_not_there():
    model = adapted("llama", torch.float32)
    for dtype in (torch.float64, torch.float16):
        with pytest.raises(RequestError, match="products in"):
            hlr.sharpness(model, BATCHES, dtype=dtype)


def test_autocast_is_not_asked_for_what_it_leaves_as_it_is():
    model = adapted("llama", torch.float64)
    for call in (hlr.sharpness, hlr.module_sharpness):
        with pytest.raises(RequestError, match="leaves float64 as it is"):
            call(model, BATCHES, dtype=torch.bfloat16)


def test_gauss_newton_trusts_no_function_that_the_hessian_does_not():
    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return torch.tanh(x)

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return gradient.detach() * (1 - torch.tanh(x.detach()) ** 2)

    model = adapted("llama", torch.float32)
    model.get_base_model().model.norm.register_forward_hook(lambda _module, _inputs, out: Kernel.apply(out))
    with pytest.raises(NotTwiceDifferentiable, match="Kernel"):
        hlr.sharpness(model, BATCHES, operator="gauss-newton")


def test_each_parameter_counts_its_own_steps_in_adams_geometry():
    model = adapted("llama", torch.float64)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    for step in range(30):
        optimizer.zero_grad()
        model(**BATCHES[0]).loss.backward()
        if step < 28:
            parameters[0].grad = None
        optimizer.step()
    found = hlr.SharpnessTracker(BATCHES, dtype=torch.float64).update(model, 30, optimizer)
    roots = []
    for p in parameters:
        state = optimizer.state[p]
        t = float(state["step"])
        second = (state["exp_avg_sq"] / (1 - 0.999**t)).sqrt() + 1e-8
        roots.append(((1 - 0.9**t) * second).rsqrt().reshape(-1))
    root = torch.cat(roots)
    truth = float(torch.linalg.eigvalsh(root[:, None] * dense_hessian(model, BATCHES) * root)[-1])
    assert found.lambda_preconditioned == pytest.approx(truth, rel=DEFAULT_LAMBDA)


def test_an_adapter_in_bfloat16_has_its_lambda_p_from_a_wider_basis():
    model = learned().to(torch.bfloat16)
    found = hlr.predict_learning_rate(model, SAMPLE, predictor="adam").adam
    # In bfloat16 no basis stays orthogonal: Lanczos took the space for exhausted at 30% of the eigenvalue.
    assert found.status == "converged" and found.residual < 0.1 * found.lambda_preconditioned
    with pytest.raises(RequestError, match="range is too small for Adam's squares"):
        hlr.predict_learning_rate(learned().to(torch.float16), SAMPLE, predictor="adam")


@pytest.mark.parametrize(
    "wrong", [{"steps": 1}, {"steps": -5}, {"steps": math.inf}, {"batch_size": -1}, {"batch_size": 2.5}]
)
def test_runs_of_nothing_are_refused_before_any_work(wrong):
    (name,) = wrong
    with pytest.raises(RequestError, match=f"{name} must be a whole number of at least .*, not "):
        hlr.predict_learning_rate(learned(), SAMPLE, **wrong)


def test_rows_without_a_label_are_passed_over_wherever_they_are():
    blank = SAMPLE[0] | {"labels": torch.full_like(SAMPLE[0]["labels"], -100)}
    found = hlr.predict_learning_rate(learned(), [blank, *SAMPLE[1:4]], warmup_batches=SAMPLE[4:])
    assert found.lr == hlr.predict_learning_rate(learned(), SAMPLE[1:4], warmup_batches=SAMPLE[4:]).lr
    curvature = hlr.sharpness(learned(), SAMPLE[:4], held_out=[blank])
    assert curvature.status == "converged" and curvature.held_out is None
    with pytest.raises(RequestError, match="no token of these batches is labelled"):
        warm_up(learned(), [blank], steps=2, top_lr=1e-3, dtype=torch.float32)


def test_checkpointing_layers_that_drop_by_themselves_drop_nothing():
    def made(checkpointed):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            shape = {"hidden_size": 8, "ffn_dim": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
            model = transformers.OPTForCausalLM(
                OPTConfig(
                    vocab_size=VOCABULARY,
                    max_position_embeddings=40,
                    word_embed_proj_dim=8,
                    dropout=0.3,
                    activation_function="gelu",
                    **shape,
                )
            )
            for parameter in model.parameters():
                parameter.data += 0.2 * torch.randn_like(parameter)
            model = with_adapter(model, target_modules=["q_proj", "fc1"])
            for parameter in model.parameters():
                parameter.data += 0.3 * torch.randn_like(parameter) * parameter.requires_grad
        if checkpointed:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return model

    state = torch.get_rng_state()
    model = made(True)
    found = hlr.sharpness(model, BATCHES, operator="central-differences")
    assert torch.equal(torch.get_rng_state(), state)
    assert model.get_base_model().model.decoder.layers[0].dropout == 0.3
    assert found.lambda_max == pytest.approx(
        hlr.sharpness(made(False), BATCHES).lambda_max, rel=DEFAULT_LAMBDA
    )


def _mixture(**options):
    shape = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = {"vocab_size": VOCABULARY, "num_key_value_heads": 1, "num_local_experts": 4}
    return transformers.MixtralForCausalLM(
        MixtralConfig(experts_implementation="eager", **shape, **config, **options)
    )


@pytest.mark.parametrize("trained", [True, False])
def test_a_routers_own_loss_is_told(trained):
    model = with_adapter(_mixture(output_router_logits=trained), target_modules=["q_proj"])
    told = [note for note in hlr.sharpness(model, BATCHES).notes if "router's own loss" in note]
    assert len(told) == trained


@pytest.mark.parametrize(("weight", "task"), [(0.5, "CAUSAL_LM"), (0.0, "CAUSAL_LM"), (0.5, None)])
def test_a_penalty_that_adalora_adds_to_the_loss_is_told(weight, task):
    rank = {"init_r": 2, "target_r": 1, "total_step": 10, "orth_reg_weight": weight}
    config = AdaLoraConfig(target_modules=["q_proj"], task_type=task, **rank)
    model = get_peft_model(base_model("llama"), config)
    own = float(model(**BATCHES[0]).loss.detach())
    found = hlr.sharpness(model, BATCHES)
    told = any("orth_reg_weight" in one and "not in what was measured" in one for one in found.notes)
    assert told is (own != pytest.approx(found.loss, rel=SAME_LOSS)) is (weight > 0 and task is not None)


def test_weights_that_a_pass_cuts_from_a_parameter_are_not_kept():
    """As mixture-of-experts layers cut an expert's from the one of all."""
    operator = HessianOperator(
        with_adapter(_mixture(), target_modules=["q_proj"]), BATCHES, dtype=torch.bfloat16, memory_budget=0
    )
    kept = []
    for _ in range(2):
        operator.matvec(torch.ones(operator.size))
        kept.append(len(operator._cast_weights))
    assert kept[0] == kept[1] > 0


def test_a_query_that_sees_nothing_by_an_added_mask_gives_nothing():
    model = adapted("llama", torch.float32)
    mask = torch.zeros(4, 1, 12, 12).masked_fill_(torch.ones(12, 12).triu(1).bool(), -torch.inf)
    mask[0, :, 0] = -torch.inf
    batch = BATCHES[0] | {"attention_mask": mask}
    own = float(model(**{k: v for k, v in batch.items() if k != "labels"}, labels=batch["labels"]).loss)
    assert hlr.sharpness(model, [batch]).loss == pytest.approx(own, rel=SAME_LOSS)
