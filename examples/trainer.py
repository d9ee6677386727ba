"""transformers' Trainer with a predicted learning rate: python examples/trainer.py [MODEL]."""

import sys

from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

import hessian_lr as hlr
from hessian_lr import data, models

loaded = models.load(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m")
task = data.load("math", loaded.tokenizer, max_length=256)
rows = Dataset.from_list([vars(row) for row in task.train[:400]])
model = get_peft_model(
    loaded.model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
)

trainer = Trainer(
    model=model,
    args=TrainingArguments(
        "runs/example",
        max_steps=20,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        lr_scheduler_type="cosine",
        warmup_steps=1,
        logging_steps=5,
        save_strategy="no",
        report_to=[],
    ),
    data_collator=DataCollatorForSeq2Seq(loaded.tokenizer),
    train_dataset=rows,
)
trainer.add_callback(hlr.integrations.PredictedLearningRate(trainer, track_every=10))
trainer.train()
