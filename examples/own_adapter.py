"""One's own LoraConfig, measured as PEFT builds it: python examples/own_adapter.py [MODEL]."""

import sys
import tempfile

from peft import LoraConfig

from hessian_lr.cli import main

own = LoraConfig(
    r=8,
    lora_alpha=16,
    use_rslora=True,
    target_modules=r".*\.(q_proj|v_proj|down_proj)",  # a pattern, which no command-line option can say
    task_type="CAUSAL_LM",
)
model = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"
with tempfile.TemporaryDirectory() as folder:
    own.save_pretrained(folder)  # or the folder of an adapter that you have trained
    main(["predict", "--model", model, "--peft-config", folder, "--samples", "4"])
