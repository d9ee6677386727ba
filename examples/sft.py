"""TRL's SFTTrainer with a predicted learning rate: python examples/sft.py [MODEL]."""

import sys

from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

import hessian_lr as hlr
from hessian_lr import models
from hessian_lr.data import tasks

loaded = models.load(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m")
pairs = tasks.generate("math").train[:400]
rows = Dataset.from_list([{"prompt": prompt + "\n", "completion": answer} for prompt, answer in pairs])

trainer = SFTTrainer(
    model=loaded.model,
    processing_class=loaded.tokenizer,
    args=SFTConfig(
        "runs/example",
        max_steps=20,
        per_device_train_batch_size=4,
        lr_scheduler_type="cosine",
        warmup_steps=1,
        max_length=256,
        logging_steps=5,
        bf16=False,
        save_strategy="no",
        report_to=[],
    ),
    train_dataset=rows,
    peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
)
trainer.add_callback(hlr.integrations.PredictedLearningRate(trainer, track_every=10))
trainer.train()
