"""Full runs on calibration prompts: what is measured, kept and resumed."""
