"""What tests of the commands share: a command's JSON, and the fields it promises."""

import json

from hessian_lr.cli import main

SETTING_KEYS = {
    *("model", "data", "fields", "methods", "rank", "alpha", "target_modules", "optimizer", "batch_size"),
    *("steps", "seed", "samples", "max_length", "device", "dtype"),
}


PREDICT_KEYS = {
    *("method", "status", "lambda_max", "lambda_lower", "lambda_upper", "lambda_min", "residual"),
    *("sampling_error", "matvecs", "gradient_equivalents", "seconds", "peak_rss_bytes"),
    *("lambda_upper_preconditioned", "residual_preconditioned", "rounding_preconditioned"),
    *("lambda_preconditioned", "lr_directional", "lr_critical", "warmup_steps", "lr", "lr_low", "lr_high"),
    *("predictor", "notes"),
}


def run_json(capsys, *arguments):
    """The JSON that a command writes to standard output, which must hold nothing else."""
    capsys.readouterr()
    status = main([*map(str, arguments), "--json", "-"])
    return status, json.loads(capsys.readouterr().out)
