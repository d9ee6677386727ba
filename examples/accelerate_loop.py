"""A training loop of one's own under accelerate: python examples/accelerate_loop.py [MODEL]."""

import sys

import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model

import hessian_lr as hlr
from hessian_lr import data, models

STEPS = 20
loaded = models.load(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m")
task = data.load("math", loaded.tokenizer, max_length=256)
batches = data.make_batches(task.train[: 4 * STEPS], 4, loaded.tokenizer.pad_token_id)
model = get_peft_model(
    loaded.model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
)
accelerator = Accelerator()
model = accelerator.prepare(model.train())

with hlr.integrations.unwrapped(model) as inner:
    prediction = hlr.predict_learning_rate(inner, batches[:12], steps=STEPS)
print(f"learning rate {prediction.lr:.1e}, range {prediction.lr_low:.1e} to {prediction.lr_high:.1e}")

optimizer = accelerator.prepare(torch.optim.AdamW(model.parameters(), lr=prediction.lr, weight_decay=0.0))
for step, batch in enumerate(batches, 1):
    loss = model(**{name: value.to(accelerator.device) for name, value in batch.items()}).loss
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    if step % 5 == 0:
        print(f"step {step}: loss {loss.item():.3f}")
